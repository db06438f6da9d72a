package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const (
	// loginPatience is how long etcd may take to compare a password at first, and most how long after a few times that
	// it took longer. To compare one costs it 60 ms of a core; if all hosts come at once, each waits for all. etcd does
	// not stop when nobody waits any more: who asks again too soon makes it twice the work.
	loginPatience    = 30 * time.Second
	maxLoginPatience = 4 * time.Minute
	// loginBackoff is the longest wait after a first login that failed and cost etcd the comparison.
	loginBackoff    = time.Second
	maxLoginBackoff = 2 * time.Minute
)

// login keeps the one token that lets in all connections of a Client, at every member of etcd. etcd's own client would
// have the password compared for each connection and each stream: for each renewal of a lease too.
type login struct {
	ctx          context.Context // ends what is under way
	password     func() (string, error)
	authenticate func(ctx context.Context, password string) (token string, err error)
	flight       singleflight.Group

	mu    sync.Mutex
	last  *token    // nil: none, or of no use any more
	tried string    // password
	err   error     // of tried
	retry time.Time // not before with the same password
	wait  backoff   // after failures in a row that cost etcd something
}

// token lets in.
type token struct {
	value  string // empty: etcd does not ask who one is
	proven bool   // etcd let somebody in with it
}

// token waits for one; who waits no more leaves etcd comparing for the others. A nil login needs none.
func (l *login) token(ctx context.Context) (*token, error) {
	if l == nil {
		return nil, nil
	}
	select {
	case got := <-l.flight.DoChan("", l.fetch):
		t, _ := got.Val.(*token)
		return t, got.Err
	case <-ctx.Done():
		return nil, failure{"etcd has not yet compared the password", ctx.Err()}
	}
}

// fetch returns the last token, or a new one. It runs once at a time.
func (l *login) fetch() (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil {
		return l.last, nil
	}
	password, err := l.password()
	if err != nil {
		return nil, err
	}
	if password == l.tried && time.Now().Before(l.retry) {
		return nil, l.err
	}
	patience := max(1, 2*time.Duration(l.wait)/loginBackoff) * loginPatience
	ctx, cancel := context.WithTimeout(l.ctx, min(maxLoginPatience, patience))
	defer cancel()
	l.mu.Unlock()
	value, err := l.authenticate(ctx, password)
	l.mu.Lock()
	if l.tried, l.retry = password, (time.Time{}); err != nil {
		l.fail(err)
		return nil, err
	}
	l.last = &token{value: value}
	return l.last, nil
}

// fail takes in that there is no token that is any good. If etcd had no work with it, the next may be had at once.
func (l *login) fail(err error) {
	l.last, l.err = nil, err
	if _, answered := errors.AsType[rpctypes.EtcdError](err); answered || unanswered(err) {
		l.retry = time.Now().Add(l.wait.next(loginBackoff, maxLoginBackoff))
	}
}

// forgive lets the next one who needs a token try at once.
func (l *login) forgive() {
	if l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.wait, l.retry = 0, time.Time{}
	}
}

// heard takes note of what etcd said to who showed the token, and reports whether another is needed.
func (l *login) heard(t *token, err error) (lost bool) {
	err = rpctypes.Error(err)
	lost = lostToken(err)
	if t == nil { // a certificate needs no token, but the roles may change while its request is under way
		return lost && err != rpctypes.ErrUserEmpty
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil && !t.proven:
		t.proven, l.wait = true, 0
	case !lost || l.last != t:
	case t.proven:
		l.last = nil
	default: // never any good, and the next would hardly be better: a member has another key than the others
		l.fail(err)
	}
	return lost
}

// lostToken reports whether etcd does not take the token any more: it ended, or was made before roles changed; or etcd
// restarted, or asks for one only now. It has done nothing of what it was asked then.
func lostToken(err error) bool {
	switch rpctypes.Error(err) {
	case rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty:
		return true
	}
	return false
}

// show adds the token to what is sent.
func (t *token) show(ctx context.Context) context.Context {
	if t == nil || t.value == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, t.value)
}

// unary shows the token with each request, and repeats it once if that is lost.
func (l *login) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for again := false; ; again = true {
		t, err := l.token(ctx)
		if err != nil {
			return err
		}
		err = invoke(t.show(ctx), method, req, reply, cc, opts...)
		if !l.heard(t, err) || again {
			return err
		}
	}
}

// stream shows the token with each stream.
func (l *login) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	t, err := l.token(ctx)
	if err != nil {
		return nil, err
	}
	s, err := open(t.show(ctx), desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &loginStream{s, func(err error) { l.heard(t, err) }}, nil
}

// loginStream hears when etcd does not take the token.
type loginStream struct {
	grpc.ClientStream
	heard func(error)
}

func (s *loginStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	said := err
	if watch, ok := m.(*etcdserverpb.WatchResponse); ok && err == nil && watch.Canceled {
		// Before version 3.5 etcd says of a lost token that permission is denied; but a watch comes after a request.
		_, reason, _ := strings.Cut(watch.CancelReason, "desc = ")
		said = errors.New(reason)
	}
	s.heard(said)
	return err
}

// authenticate has etcd compare the password over a connection of its own, which nobody closes before that is done.
func (c *Client) authenticate(ctx context.Context, password string) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	list := c.current()
	for _, e := range list {
		defer context.AfterFunc(e.retired, func() { cancel(errRetired) })()
	}
	client, err := c.plain(ctx, list.urls())
	if err != nil {
		return "", err
	}
	defer client.Close()
	got, err := client.Authenticate(ctx, c.cfg.Username, password)
	switch {
	case errors.Is(context.Cause(ctx), errRetired):
		return "", errRetired
	case errors.Is(err, rpctypes.ErrAuthNotEnabled):
		return "", nil
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "", failure{fmt.Sprintf("etcd at %s refuses user %q with the password in %s: correct the one or the other",
			strings.Join(list.urls(), ", "), c.cfg.Username, c.cfg.PasswordFile), err}
	case err != nil:
		return "", describe(err, list.urls()...)
	}
	return got.Token, nil
}
