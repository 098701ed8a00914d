// Package page renders the HTML that a node itself shows to people: sign-in, sign-out, the portal, refusals. It gives all of them
// one look, light and dark, no script, and a content security policy that allows the page's own style by its hash and nothing else.
//
// Invariants. A page is rendered whole before its first byte is sent. No page is cached, framed, or names its address to others.
//
// It leaves to others what a page says, and whether a client wants a page at all.
package page

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
	"strings"
)

// ResponseHeader tells our own answers from an application's: it names the answer.
const ResponseHeader = "X-Iapmesh-Response"

const style = `:root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--ink:#16191d;--soft:#59626e;--line:#d9dee4;--accent:#0b57d0;--on:#fff;--bad:#b3261e;--badbg:#fdecea}
@media(prefers-color-scheme:dark){:root{--bg:#101317;--card:#191d23;--ink:#e7eaee;--soft:#a3adb9;--line:#323a44;--accent:#8ab4f8;--on:#0b1a33;--bad:#ffb4ab;--badbg:#3b1513}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif;padding:6vh 1rem 3rem}
main{max-width:34rem;margin:0 auto;background:var(--card);border:1px solid var(--line);border-radius:14px;padding:2rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .5rem}
p{margin:.5rem 0}
.soft{color:var(--soft);font-size:.9rem}
.alert{background:var(--badbg);color:var(--bad);border-radius:8px;padding:.6rem .9rem;margin:1rem 0}
button{width:100%;font:inherit;font-weight:600;margin-top:1.25rem;border:0;border-radius:8px;padding:.7rem;background:var(--accent);color:var(--on);cursor:pointer}
a{color:var(--accent)}
ul{list-style:none;margin:1.25rem 0 0;padding:0}
li{border-top:1px solid var(--line);padding:.6rem 0;overflow-wrap:anywhere}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
nav{display:flex;flex-wrap:wrap;gap:.4rem 1.25rem;margin-top:1.75rem;padding-top:1rem;border-top:1px solid var(--line)}
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}`

const frame = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{template "title" .}}</title><style>` + style + `</style></head>
<body><main>{{template "body" .}}</main></body></html>
`

// Template is a page: a body within the common frame.
type Template struct{ html *template.Template }

// Parse makes a page of html/template text that defines "title" and "body"; it panics on a mistake in it, as template.Must
// does, for the text is part of the program.
func Parse(text string) Template {
	t := template.Must(template.New("page").Parse(frame))
	return Template{html: template.Must(t.Parse(text))}
}

// Write answers with the page; code names the answer in ResponseHeader. A form on it may be submitted to the origins in
// formAction only, and so may no later redirect of that submission lead elsewhere: browsers apply form-action to the whole chain.
func (t Template) Write(w http.ResponseWriter, status int, code string, data any, formAction ...string) {
	var out bytes.Buffer
	if err := t.html.Execute(&out, data); err != nil {
		w.Header().Set(ResponseHeader, "error")
		http.Error(w, "this page cannot be shown", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set(ResponseHeader, code)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy(formAction))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin") // no-referrer would send form posts with Origin: null
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(out.Bytes()) // the client has gone: nobody is left to tell
}

// Link leads on from a page.
type Link struct{ Text, URL string }

// Message is a page that says one thing.
type Message struct {
	Title  string
	Text   []string // paragraphs
	Alert  string   // what went wrong, if something did
	Detail string   // small print, such as a request id
	Links  []Link
}

// Write answers with the message; code as in Template.Write.
func (m Message) Write(w http.ResponseWriter, status int, code string) {
	message.Write(w, status, code, m)
}

// message is parsed once and never changes.
var message = Parse(`{{define "title"}}{{.Title}}{{end}}
{{define "body"}}<h1>{{.Title}}</h1>
{{if .Alert}}<p class="alert" role="alert">{{.Alert}}</p>{{end}}{{range .Text}}<p>{{.}}</p>{{end}}
{{if .Detail}}<p class="soft"><code>{{.Detail}}</code></p>{{end}}
{{if .Links}}<nav>{{range .Links}}<a href="{{.URL}}">{{.Text}}</a>{{end}}</nav>{{end}}{{end}}`)

// Wanted reports whether the client asked for a page rather than for data.
func Wanted(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

func policy(formAction []string) string {
	sum := sha256.Sum256([]byte(style))
	if len(formAction) == 0 {
		formAction = []string{"'none'"}
	}
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; form-action " + strings.Join(formAction, " ") + "; base-uri 'none'; frame-ancestors 'none'"
}
