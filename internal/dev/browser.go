package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	maxRedirects = 20 // as Chrome and Firefox
	maxPage      = 8 << 20
)

// Browser visits pages as a person's browser does: it follows redirects, keeps cookies, fills in forms. It runs no script
// and loads no images. It may be used by several goroutines; each sees the others' cookies.
type Browser struct {
	// Client is the HTTP client beneath, for requests that are no navigation. Its jar is the browser's.
	Client *http.Client
}

// NewBrowser makes a browser without cookies; Jar and NoRedirects are the browser's own affair.
func NewBrowser(c Config) *Browser {
	c.Jar, c.NoRedirects = true, false
	client := Client(c)
	client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fault.New(fault.Conflict, "redirected %d times, at last to %s: a loop", len(via), withoutQuery(r.URL))
		}
		// net/http repeats the first request's headers and adds the last URL, query included, as Referer.
		r.Header.Del("Referer")
		if r.Method == http.MethodGet {
			r.Header.Del("Origin")
		}
		if r.Header.Get("Sec-Fetch-Site") == "same-origin" && r.URL.Host != via[len(via)-1].URL.Host {
			r.Header.Set("Sec-Fetch-Site", "cross-site")
		}
		return nil
	}
	return &Browser{Client: client}
}

// Get navigates to target and follows redirects. The body of the answer is in memory and needs no closing; the answer's
// Request.URL is where the browser arrived.
func (b *Browser) Get(ctx context.Context, target string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "visit %s: %w", target, err)
	}
	r.Header.Set("Sec-Fetch-Site", "none")
	return b.do(r)
}

// Submit fills in a form of the page and sends it; fields are set by name, beside those that the form holds already.
func (b *Browser) Submit(ctx context.Context, page *http.Response, form Form, fields map[string]string) (*http.Response, error) {
	base := page.Request.URL
	target, err := base.Parse(form.Action)
	if err != nil {
		return nil, fault.New(fault.Invalid, "submit form to %q: %w", form.Action, err)
	}
	values := url.Values{}
	for name, value := range form.Fields {
		values.Set(name, value)
	}
	for name, value := range fields {
		values.Set(name, value)
	}
	var r *http.Request
	if form.Method == http.MethodPost {
		if r, err = http.NewRequestWithContext(ctx, http.MethodPost, target.String(), strings.NewReader(values.Encode())); err == nil {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Origin", base.Scheme+"://"+base.Host)
		}
	} else {
		target.RawQuery = values.Encode()
		r, err = http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "submit form to %q: %w", form.Action, err)
	}
	site := "cross-site"
	if target.Scheme == base.Scheme && target.Host == base.Host {
		site = "same-origin"
		r.Header.Set("Referer", withoutQuery(base))
	}
	r.Header.Set("Sec-Fetch-Site", site)
	return b.do(r)
}

// SignIn opens startURL, fills in the sign-in form that it is led to, and returns the page at which it arrives: usually the
// one that was asked for, or a 403 that says who is denied. Where a session lets it pass without a form, it returns at once.
// Refused credentials are Unauthenticated.
func (b *Browser) SignIn(ctx context.Context, startURL, username, password string) (*http.Response, error) {
	page, err := b.Get(ctx, startURL)
	if err != nil {
		return nil, fmt.Errorf("sign in as %s: %w", username, err)
	}
	form, ok, err := passwordForm(page)
	if err != nil || !ok {
		return page, err
	}
	arrived, err := b.Submit(ctx, page, form, map[string]string{"username": username, "password": password})
	if err != nil {
		return nil, fmt.Errorf("sign in as %s: %w", username, err)
	}
	if again, ok, err := passwordForm(arrived); err != nil {
		return nil, fmt.Errorf("sign in as %s: %w", username, err)
	} else if ok {
		return arrived, fault.New(fault.Unauthenticated, "sign in as %s: %s answers %d: %s", username,
			withoutQuery(arrived.Request.URL), arrived.StatusCode, again.Alert)
	}
	return arrived, nil
}

// Cookie returns the cookie that the browser would send to target.
func (b *Browser) Cookie(target, name string) (*http.Cookie, bool) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, false
	}
	cookies := b.Client.Jar.Cookies(u)
	i := slices.IndexFunc(cookies, func(c *http.Cookie) bool { return c.Name == name })
	if i < 0 {
		return nil, false
	}
	return cookies[i], true
}

// do sends a navigation and reads the answer whole.
func (b *Browser) do(r *http.Request) (*http.Response, error) {
	r.Header.Set("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
	r.Header.Set("Accept-Language", "en")
	r.Header.Set("User-Agent", "Mozilla/5.0 (iapmesh development browser)")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	r.Header.Set("Sec-Fetch-User", "?1")
	r.Header.Set("Upgrade-Insecure-Requests", "1")
	response, err := b.Client.Do(r)
	if err != nil {
		var failed *url.Error // names the URL with its query: codes and tickets
		if errors.As(err, &failed) {
			if u, parseErr := url.Parse(failed.URL); parseErr == nil {
				return nil, fmt.Errorf("visit %s: %w", withoutQuery(u), failed.Err)
			}
		}
		return nil, fmt.Errorf("visit %s: %w", withoutQuery(r.URL), err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPage+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", withoutQuery(response.Request.URL), err)
	}
	if len(body) > maxPage {
		return nil, fault.New(fault.Exhausted, "read %s: page of more than %d bytes", withoutQuery(response.Request.URL), maxPage)
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

// withoutQuery keeps codes, states and tickets out of errors and Referer headers.
func withoutQuery(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }
