package etcdembed

import (
	"bytes"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

func TestLogLevels(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	var closing atomic.Bool
	z := zapLogger(log, &closing).With(zap.String("member", "m"))
	z.Debug("debug")
	z.Info("info")
	z.Warn("warn", zap.Int("n", 1))
	z.Error("error", zap.Error(errors.New("broken")))
	closing.Store(true)
	z.Error("a listener was closed")
	const want = `level=WARN msg=warn part=etcd member=m n=1
level=ERROR msg=error part=etcd member=m error=broken
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	zapLogger(nil, &closing).Error("nowhere")
}
