package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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

	mu       sync.Mutex
	last     *token // nil: none, or of no use any more
	failures int    // in a row that cost etcd something
}

// token is what etcd gives for a password, or has failed to.
type token struct {
	password string
	known    chan struct{} // closed as soon as value or err is there
	value    string        // empty: etcd does not ask who one is
	err      error
	retry    time.Time   // of what failed: not before, unless the password is another
	proven   atomic.Bool // etcd let somebody in with it
}

// token waits for one. A nil login needs none.
func (l *login) token(ctx context.Context) (*token, error) {
	if l == nil {
		return nil, nil
	}
	t, err := l.current()
	if err != nil {
		return nil, err
	}
	select {
	case <-t.known:
		return t, t.err
	case <-ctx.Done():
		return nil, failure{"etcd has not yet compared the password", ctx.Err()}
	}
}

// current is the last token, or one that is on its way from now on.
func (l *login) current() (*token, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil && !l.last.failed() {
		return l.last, nil
	}
	password, err := l.password()
	if err != nil {
		return nil, err
	}
	if t := l.last; t != nil && t.password == password && time.Now().Before(t.retry) {
		return t, nil
	}
	l.last = &token{password: password, known: make(chan struct{})}
	go l.fetch(l.last, min(maxLoginPatience, loginPatience<<min(l.failures, 10)))
	return l.last, nil
}

func (t *token) failed() bool {
	select {
	case <-t.known:
		return t.err != nil
	default:
		return false
	}
}

// fetch has etcd compare the password, also if those who wait for it give up.
func (l *login) fetch(t *token, patience time.Duration) {
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	value, err := l.authenticate(ctx, t.password)
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.value, t.err = value, err; err != nil {
		t.retry = l.backoff(err)
	}
	close(t.known)
}

// backoff is when to try again after an error: at once if etcd had no work with it.
func (l *login) backoff(err error) (retry time.Time) {
	if _, answered := errors.AsType[rpctypes.EtcdError](err); !answered && !unanswered(err) {
		return retry
	}
	most := min(maxLoginBackoff, loginBackoff<<min(l.failures, 10))
	l.failures++
	return time.Now().Add(most/2 + rand.N(most/2))
}

// forgive lets the next one who needs a token try at once.
func (l *login) forgive() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = 0
	if l.last != nil && l.last.failed() {
		l.last = nil
	}
}

// heard takes note of what etcd said to who showed the token, and reports whether another is needed.
func (l *login) heard(t *token, err error) (lost bool) {
	if !lostToken(err) {
		if err == nil && t != nil && !t.proven.Swap(true) {
			l.mu.Lock()
			l.failures = 0
			l.mu.Unlock()
		}
		return false
	}
	if t == nil { // a certificate needs no token, but the roles may change while its request is under way
		return !errors.Is(rpctypes.Error(err), rpctypes.ErrUserEmpty)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.last != t:
	case t.proven.Load():
		l.last = nil
	default: // never any good, and the next would hardly be better: a member has another key than the others
		l.last = &token{password: t.password, known: t.known, err: rpctypes.Error(err), retry: l.backoff(rpctypes.Error(err))}
	}
	return true
}

// lostToken reports whether etcd does not take the token any more: it ended, or was made before roles changed; or etcd
// restarted, or asks for one only now. It has done nothing of what it was asked then.
func lostToken(err error) bool {
	return err != nil && slices.ContainsFunc([]error{rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty},
		func(lost error) bool { return errors.Is(rpctypes.Error(err), lost) })
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
		if lost := l.heard(t, err); !lost || again {
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
	return &loginStream{s, l, t}, nil
}

// loginStream hears when etcd does not take the token.
type loginStream struct {
	grpc.ClientStream
	login *login
	token *token
}

func (s *loginStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	said := err
	if watch, ok := m.(*etcdserverpb.WatchResponse); ok && err == nil && watch.Canceled {
		// Before version 3.5 etcd says of a lost token that permission is denied; but a watch comes after a request.
		_, reason, _ := strings.Cut(watch.CancelReason, "desc = ")
		said = errors.New(reason)
	}
	s.login.heard(s.token, said)
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
