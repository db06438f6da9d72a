package main

import (
	"context"
	"log/slog"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestEndsBeforeEtcdServes is told to end while the embedded etcd is being started, which is no failure.
func TestEndsBeforeEtcdServes(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g, ctx := errgroup.WithContext(ctx)
	c := &config{stateDir: t.TempDir(), runDir: t.TempDir(), embedded: true, log: slog.New(slog.DiscardHandler)}
	if err := c.embed(ctx, g, nil); err != nil {
		t.Error(err)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
