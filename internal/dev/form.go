package dev

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"

	"golang.org/x/net/html"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Form is a form of a page.
type Form struct {
	Action   string            // as written: relative to the page
	Method   string            // GET or POST
	Fields   map[string]string // of inputs by name; hidden ones with their values
	Password bool              // there is a field to type a password in
	Alert    string            // the page's text with role=alert: what went wrong
}

// Forms finds the forms of a page; the page can still be read afterwards.
func Forms(page *http.Response) ([]Form, error) {
	body, err := io.ReadAll(io.LimitReader(page.Body, maxPage))
	if err != nil {
		return nil, fmt.Errorf("read forms: %w", err)
	}
	page.Body = io.NopCloser(bytes.NewReader(body))
	if !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") {
		return nil, nil
	}
	root, err := html.Parse(bytes.NewReader(body))
	if err != nil {
		return nil, fault.New(fault.Invalid, "read forms: %w", err)
	}
	var forms []Form
	var alert string
	for node := range root.Descendants() {
		if node.Type != html.ElementNode {
			continue
		}
		if attribute(node, "role") == "alert" {
			alert = strings.TrimSpace(text(node))
		}
		if node.Data == "form" {
			forms = append(forms, readForm(node))
		}
	}
	for i := range forms {
		forms[i].Alert = alert
	}
	return forms, nil
}

func readForm(node *html.Node) Form {
	f := Form{Action: attribute(node, "action"), Method: http.MethodGet, Fields: map[string]string{}}
	if strings.EqualFold(attribute(node, "method"), http.MethodPost) {
		f.Method = http.MethodPost
	}
	for input := range node.Descendants() {
		if input.Type != html.ElementNode || input.Data != "input" {
			continue
		}
		name := attribute(input, "name")
		switch strings.ToLower(attribute(input, "type")) {
		case "submit", "button", "image", "reset", "file", "checkbox", "radio":
			continue // sent only if used
		case "password":
			f.Password = true
		}
		if name != "" {
			f.Fields[name] = attribute(input, "value")
		}
	}
	return f
}

// passwordForm is the page's sign-in form, if it has one.
func passwordForm(page *http.Response) (Form, bool, error) {
	forms, err := Forms(page)
	if err != nil {
		return Form{}, false, err
	}
	for _, f := range forms {
		if f.Password {
			return f, true, nil
		}
	}
	return Form{}, false, nil
}

func attribute(node *html.Node, name string) string {
	for _, a := range node.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func text(node *html.Node) string {
	var b strings.Builder
	for n := range node.Descendants() {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
	}
	return b.String()
}
