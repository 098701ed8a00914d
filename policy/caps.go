package policy

import (
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	maxText    = 64 << 10 // bytes of one Cedar text, and of one route's short form
	maxNesting = 64       // brackets and ifs open at once: cedar-go's parser recurses, and a stack overflow cannot be recovered
	maxUnary   = 4        // ! and - in a row, as in Cedar's reference implementation
	maxNodes   = 4096     // of one policy's tree: the validator's cost grows faster than the text
)

// checkCaps refuses a Cedar text that could harm the parser, before the parser sees it. Where the text is not Cedar it may be
// wrong about what is a string; it then errs on the side of the parser, which stops at the first bad token.
func checkCaps(text string) error {
	if len(text) > maxText {
		return fault.New(fault.Invalid, "%d bytes, at most %d", len(text), maxText)
	}
	depth, ifs, unary, line := 0, 0, 0, 1
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\n':
			line++
			continue
		case c == ' ' || c == '\t' || c == '\r':
			continue
		case c == '!' || c == '-':
			if unary++; unary > maxUnary {
				return fault.New(fault.Invalid, "line %d: more than %d ! or - in a row", line, maxUnary)
			}
			continue
		case c == '/' && strings.HasPrefix(text[i:], "//"):
			if end := strings.IndexByte(text[i:], '\n'); end >= 0 {
				i += end - 1
			} else {
				i = len(text)
			}
			continue
		}
		unary = 0
		switch {
		case c == '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				} else if text[i] == '\n' {
					line++
				}
			}
		case c == '(' || c == '[' || c == '{':
			depth++
		case c == ')' || c == ']' || c == '}':
			depth--
		case c == ';':
			depth, ifs = 0, 0
		case c == 'i' && strings.HasPrefix(text[i:], "if") && (i == 0 || !wordByte(text[i-1])) && (i+2 >= len(text) || !wordByte(text[i+2])):
			ifs++ // an if is never closed: all of one policy count
		}
		if depth+ifs > maxNesting {
			return fault.New(fault.Invalid, "line %d: nested deeper than %d", line, maxNesting)
		}
	}
	return nil
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}
