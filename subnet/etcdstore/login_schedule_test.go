package etcdstore

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// While etcd compares a password, which may take minutes, everything else goes on.
func TestLoginHoldsUpNobody(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, "secret")
	const here, there = "http://192.0.2.1:2379", "http://192.0.2.2:2379"
	c := new(logins).user(t, here, file).client
	began := make(chan context.Context)
	c.login.authenticate = func(ctx context.Context, _ string) (string, error) {
		began <- ctx
		<-ctx.Done()
		return "", ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := c.dial(ctx, here)
		gone <- err
	}()
	attempt := <-began
	if got := c.Endpoints(); len(got) != 1 || got[0] != here {
		t.Errorf("endpoints are %s", got)
	}
	c.login.wait = 7 // with the endpoints as they were
	if err := c.SetEndpoints([]string{there}); err != nil || c.login.wait != 0 {
		t.Errorf("%v, wait %d", err, c.login.wait)
	}
	if got := c.Endpoints(); len(got) != 1 || got[0] != there {
		t.Errorf("endpoints are %s", got)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who waits no more hears %v", err)
	}
	if attempt.Err() != nil {
		t.Error("what etcd compares was given up with it")
	}
	c.Close()
	<-attempt.Done()
}

// The schedule of logins, by a clock that is not the machine's.
func TestLoginSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var took []time.Duration // how long each was given
		var answer error         // nil: none comes
		password := "first"
		l := &login{ctx: t.Context(), password: func() (string, error) { return password, nil }}
		l.authenticate = func(ctx context.Context, _ string) (string, error) {
			begin := time.Now()
			defer func() { took = append(took, time.Since(begin)) }()
			if answer != nil {
				return "", answer
			}
			<-ctx.Done()
			return "", ctx.Err()
		}
		try := func() error { _, err := l.token(t.Context()); return err }
		attempts := func(want int, why string) {
			t.Helper()
			if len(took) != want {
				t.Fatalf("%d attempts, want %d: %s", len(took), want, why)
			}
		}

		for i, patience := range []time.Duration{30, 60, 120, 240, 240} {
			for range 10 { // at once
				go try()
			}
			if err := try(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			attempts(i+1, "one for all")
			if took[i] != patience*time.Second {
				t.Errorf("attempt %d was given %v", i, took[i])
			}
			try()
			attempts(i+1, "etcd had work with the last: not yet")
			time.Sleep(loginBackoff << i)
		}
		l.forgive()
		answer = errors.New("connection refused")
		try()
		try()
		attempts(7, "etcd had no work with it: again at once")
		answer = rpctypes.ErrAuthFailed
		try()
		try()
		attempts(8, "once is enough for a wrong password")
		password = "second"
		try()
		attempts(9, "another password: at once")
	})
}

// A token that is never any good is not replaced again and again.
func TestUselessToken(t *testing.T) {
	t.Parallel()
	fetched := 0
	l := &login{ctx: t.Context(), password: func() (string, error) { return "secret", nil }, wait: backoff(maxLoginBackoff)}
	l.authenticate = func(context.Context, string) (string, error) { fetched++; return "token", nil }
	bad := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		return rpctypes.ErrGRPCInvalidAuthToken
	}
	for range 5 {
		if err := l.unary(t.Context(), "", nil, nil, nil, bad); !errors.Is(rpctypes.Error(err), rpctypes.ErrInvalidAuthToken) {
			t.Errorf("got %v", err)
		}
	}
	if fetched != 1 {
		t.Errorf("%d logins", fetched)
	}
}
