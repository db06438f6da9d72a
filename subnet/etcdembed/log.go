package etcdembed

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger is a zap logger that writes to log; nil discards. While closing is true everything is detail: etcd complains
// of each of its listeners that is closed.
func zapLogger(log *slog.Logger, closing *atomic.Bool) *zap.Logger {
	if log == nil {
		return zap.NewNop()
	}
	return zap.New(slogCore{log.Handler().WithAttrs([]slog.Attr{slog.String("part", "etcd")}), closing})
}

// slogCore is a zapcore.Core on a slog.Handler.
type slogCore struct {
	handler slog.Handler
	closing *atomic.Bool
}

// level maps zap's levels to slog's, one lower than etcd has them up to info: what is news to an operator of etcd
// is detail to one of overlayd.
func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func (c slogCore) Enabled(l zapcore.Level) bool {
	return c.handler.Enabled(context.Background(), level(l))
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.handler.WithAttrs(attrs(fields)), c.closing}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// expected are messages that every start and every new member bring, and that call for nothing.
var expected = []string{
	"Running http and grpc server on single port. This is not recommended for production.",     // nothing but overlayd asks
	"simple token is not cryptographically signed",                                             // the token never leaves the process
	"Failed to detect schema version",                                                          // there are no data yet
	"failed to update storage version",                                                         // likewise; tried again at the next snapshot
	"scheme is http or unix while key and cert files are present; ignoring key and cert files", // the socket, which is for root
	"scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
	"rejecting promote learner: learner is not ready", // who adds a member tries until it is, and says so
	"failed to promote a member",
	"rejecting member remove request; local member has not been connected to all peers, reconfigure breaks active quorum",
	"rejecting member add request; local member has not been connected to majority peers, reconfigure breaks active quorum",
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	l := level(e.Level)
	if c.closing.Load() || slices.Contains(expected, e.Message) {
		l = slog.LevelDebug
		if !c.handler.Enabled(context.Background(), l) {
			return nil
		}
	}
	r := slog.NewRecord(e.Time, l, e.Message, 0)
	r.AddAttrs(attrs(fields)...)
	return c.handler.Handle(context.Background(), r)
}

func (c slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	var out []slog.Attr
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
