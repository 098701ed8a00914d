package keyring

import (
	"regexp"
	"strings"
)

const redactedMark = "[redacted]"

// Sixteen characters of the body in a row give something away: fewer leave more of the seed unknown than anybody can try, and the names of
// files and keys are shorter (iapk_us-east.key).
var (
	secretWord = regexp.MustCompile(secretPrefix + "[^\\s\"'`,;/]*")
	secretRun  = regexp.MustCompile(`[0-9A-Za-z]{16,}`)
	tornWord   = regexp.MustCompile(`^iapk_([a-z2-7]{0,16}|[a-z2-7]{16}_[0-9A-Za-z]*)[^0-9A-Za-z]*$`)
)

// Redact hides every provisioning key in a text, for what people and logs are shown: also one that is cut off, mistyped, or torn by white
// space. Its id stays, where it is whole, since that names the key and is no secret. What is hidden already stays as it is.
func Redact(text string) string {
	if !strings.Contains(text, secretPrefix) {
		return text
	}
	found := false
	text = secretWord.ReplaceAllStringFunc(text, func(word string) string {
		hidden := redactWord(word)
		found = found || hidden != word || tornWord.MatchString(word)
		return hidden
	})
	if !found {
		return text
	}
	return secretRun.ReplaceAllStringFunc(text, func(run string) string { // the rest of one that was torn
		if strings.ContainsAny(run, base62Digits[:10]) && strings.ContainsAny(run, base62Digits[10:36]) && strings.ContainsAny(run, base62Digits[36:]) {
			return redactedMark
		}
		return run
	})
}

// redactWord hides a word that begins with a key's prefix, if it holds a part of the secret. Punctuation after it stays.
func redactWord(word string) string {
	kept, rest := secretPrefix, word[len(secretPrefix):]
	if id := idBefore(rest); id != "" {
		kept, rest = kept+id+"_", rest[len(id):]
	}
	if !secretRun.MatchString(rest) {
		return word
	}
	return kept + redactedMark + rest[len(strings.TrimRight(rest, ".:)]}>!?\\")):]
}

// idBefore is the id that a text begins with; empty if it does not begin with a whole one.
func idBefore(text string) string {
	if len(text) < secretIDLen || !validKeyID(text[:secretIDLen]) {
		return ""
	}
	if len(text) > secretIDLen {
		if _, goesOn := base62Digit(text[secretIDLen]); goesOn {
			return ""
		}
	}
	return text[:secretIDLen]
}

// FindSecret reports whether a text holds a provisioning key or a part of one, that is whether Redact hides any of it, and by which id; the
// id is empty where it cannot be read.
func FindSecret(text string) (id string, found bool) {
	if Redact(text) == text {
		return "", false
	}
	for _, word := range secretWord.FindAllString(text, -1) {
		if id = idBefore(word[len(secretPrefix):]); id != "" {
			return id, true
		}
	}
	return "", true
}
