package app

import (
	"fmt"
	"net/http"

	"github.com/iapmesh/iapmesh/internal/dev/page"
)

// Invoice is billing's answer.
type Invoice struct {
	App      string        `json:"app"`
	Region   string        `json:"region,omitempty"`
	ServedBy string        `json:"served_by,omitempty"`
	User     string        `json:"user"` // e-mail, or the subject of a user without one
	Subject  string        `json:"subject"`
	Groups   []string      `json:"groups"`
	Number   string        `json:"number"`
	Lines    []InvoiceLine `json:"lines"`
	Total    Cents         `json:"total_cents"`
}

// InvoiceLine is one position of an invoice.
type InvoiceLine struct {
	Text     string `json:"text"`
	Quantity int    `json:"quantity"`
	Each     Cents  `json:"each_cents"`
	Amount   Cents  `json:"amount_cents"`
}

// Cents is an amount of money in hundredths of a euro.
type Cents int64

func (c Cents) String() string { return fmt.Sprintf("€ %d.%02d", c/100, c%100) }

// NewBilling makes an application that serves nobody without a verified assertion, whatever its network lets through:
// 401 with an RFC 9457 problem or a page. To others it shows an invoice, as a page or as JSON.
func NewBilling(c Config) http.Handler {
	c = c.withDefaults("billing")
	verifier := NewVerifier(c)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller := verifier.Caller(r)
		if !caller.Verified {
			if page.Wanted(r) {
				refusedTemplate.Write(w, http.StatusUnauthorized, caller)
				return
			}
			writeJSON(w, http.StatusUnauthorized, problem{"Assertion missing or not verified", http.StatusUnauthorized, caller.Reason})
			return
		}
		invoice := newInvoice(*caller.Claims)
		invoice.App, invoice.Region, invoice.ServedBy = c.Name, c.Region, r.Header.Get(c.RegionHeader)
		if page.Wanted(r) {
			invoiceTemplate.Write(w, http.StatusOK, invoice)
			return
		}
		writeJSON(w, http.StatusOK, invoice)
	})
}

// problem is an RFC 9457 document.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func newInvoice(c Claims) Invoice {
	invoice := Invoice{
		User: c.Email, Subject: c.Subject, Groups: append([]string{}, c.Groups...), Number: "2026-0042",
		Lines: []InvoiceLine{
			{Text: "Nodes, three regions", Quantity: 9, Each: 4_900},
			{Text: "Audit storage, per 100 GB", Quantity: 4, Each: 1_250},
			{Text: "Support, per month", Quantity: 1, Each: 19_000},
		},
	}
	if invoice.User == "" {
		invoice.User = c.Subject
	}
	for i := range invoice.Lines {
		line := &invoice.Lines[i]
		line.Amount = Cents(line.Quantity) * line.Each
		invoice.Total += line.Amount
	}
	return invoice
}
