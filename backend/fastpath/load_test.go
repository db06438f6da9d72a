package fastpath

import (
	"log/slog"
	"testing"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

func newPath(t *testing.T) *Path {
	t.Helper()
	p, err := New(Config{Namespace: nstest.New(t), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	return p
}

func TestLoad(t *testing.T) {
	p := newPath(t)
	t.Logf("%+v", p.Status())
}
