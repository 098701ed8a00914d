package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/node"
)

// The log of a node goes where its errors go, in either format.
func TestNoKeyStandsInTheLog(t *testing.T) {
	t.Parallel()
	const id, body = "kzdvvj2umnduyauf", "003xQ7xWKNOY14pFaYCAx5XGzSaWZKQFo2yih8X4q8FInNnxLvcjLd9aoDMYFEWx0IEKat8fRAFCZzg8bl7xNGu09n4HP7Vl"
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		newLogger(redactor{&out}, node.Log{Format: format}).Warn("join put off", "error", "open iapk_"+id+"_"+body+": no such file")
		if got := out.String(); strings.Contains(got, body[:16]) || !strings.Contains(got, id+"_[redacted]: no such file") {
			t.Errorf("%s: %s", format, got)
		}
	}
}

// What run is given, it redacts: whoever makes a command of it need not.
func TestRunHidesKeys(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(config, []byte("join: {key: iapk_kzdvvj2umnduyauf_003xQ7xWKNOY14pFaYCAx5XG}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if status := run(context.Background(), []string{"check", "--config", config}, strings.NewReader(""), &out, &errs); status != 1 {
		t.Errorf("status %d", status)
	}
	if got := errs.String() + out.String(); strings.Contains(got, "003x") || !strings.Contains(got, "iapk_kzdvvj2umnduyauf_[redacted]") {
		t.Error(got)
	}
}
