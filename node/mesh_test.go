package node_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/node"
)

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestScratch(t *testing.T) {
	dir := t.TempDir()
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	conf := func(i int) node.Config {
		c := node.DefaultConfig()
		c.Name, c.Region, c.Roles = fmt.Sprintf("n%d", i), fmt.Sprintf("r%d", i), []string{"control"}
		c.DataDir = filepath.Join(dir, c.Name)
		c.Listen = node.Listen{Mesh: freePort(t), Gossip: freePort(t), Ops: freePort(t)}
		c.Control.PromoteAfter = node.Duration(2 * time.Second)
		return c
	}
	c1 := conf(1)
	f, err := node.Init(t.Context(), node.InitConfig{Config: c1, TrustDomain: "mesh.test", Admin: "root", Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "key")
	raw := f.Bootstrap.String()
	os.WriteFile(keyFile, []byte(raw), 0o600)
	start := func(c node.Config) {
		n, err := node.New(t.Context(), c, logger)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		t.Cleanup(func() { cancel(); t.Log(c.Name, <-done) })
	}
	start(c1)
	for i := 2; i <= 3; i++ {
		c := conf(i)
		c.Join = node.Join{Addresses: []string{c1.Listen.Mesh}, Key: node.Credential{File: keyFile}}
		start(c)
	}
	time.Sleep(8 * time.Second)
}
