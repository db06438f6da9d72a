package etcdstore

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// failure is why etcd did not do what it was asked, in the words of an operator.
type failure struct {
	text string
	err  error // as the client has it, for errors.Is
}

func (f failure) Error() string { return f.text }

func (f failure) Unwrap() error { return f.err }

// describe names the endpoints and says what the matter is without the wording of gRPC.
func describe(err error, endpoints ...string) error {
	if err == nil {
		return nil
	}
	if described, ok := errors.AsType[failure](err); ok {
		return described
	}
	where := "etcd at " + strings.Join(endpoints, ", ")
	return failure{where + complaint(err), err}
}

// unanswered says whether etcd took too long.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

func complaint(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return " does not answer"
	}
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		if errors.Is(e, rpctypes.ErrUserEmpty) {
			return " asks for a username and a password, and none is configured"
		}
		return ": " + strings.TrimPrefix(e.Error(), "etcdserver: ")
	}
	if e, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		st := e.GRPCStatus()
		switch st.Code() {
		case codes.Unavailable, codes.Aborted: // Aborted: see failFastOnce
			return " cannot be reached: " + reason(st.Message())
		case codes.DeadlineExceeded:
			return " does not answer"
		}
		return ": " + st.Message()
	}
	return ": " + err.Error()
}

// operation is what the net package puts before the cause: the addresses, which an endpoint says better.
var operation = regexp.MustCompile(`^(dial|read|write) (tcp|unix) \S+: ((connect|read|write): )?`)

// reason unwraps what gRPC says of a connection that failed, for example
//
//	connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:2379: connect: connection refused"
func reason(message string) string {
	if _, quoted, ok := strings.Cut(message, "connection error: desc = "); ok {
		if quoted, err := strconv.QuotedPrefix(quoted); err == nil {
			message, _ = strconv.Unquote(quoted) // a quoted prefix is one
		}
	}
	message = strings.TrimPrefix(message, "transport: ")
	message = strings.TrimPrefix(message, "Error while dialing: ")
	message = strings.TrimPrefix(message, "error reading from server: ")
	switch message {
	case "EOF":
		return "it closed the connection"
	case "error reading server preface: EOF":
		return "it closed the connection at once: it may want https"
	case "authentication handshake failed: EOF":
		return "it closed the connection during the TLS handshake: it may speak http only"
	}
	message = strings.TrimPrefix(message, "authentication handshake failed: ")
	message = strings.TrimPrefix(message, "error reading server preface: ")
	return operation.ReplaceAllString(message, "")
}
