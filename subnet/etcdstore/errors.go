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
		switch web := strings.Contains(st.Message(), "HTTP status code"); {
		case st.Code() == codes.Unavailable, st.Code() == codes.Aborted, web: // Aborted: see failFastOnce
			return " cannot be reached: " + reason(st.Message())
		case st.Code() == codes.DeadlineExceeded:
			return " does not answer"
		}
		return ": " + st.Message()
	}
	return ": " + err.Error()
}

// causes are what connections fail of, as the net package, TLS and gRPC put it, and what an operator is told of it: what it is,
// and how to mend it. The first that fits counts.
var causes = []struct {
	said  *regexp.Regexp
	means string
}{
	{regexp.MustCompile(`^.*lookup (\S+?)( on \S+)?: no such host$`), "DNS does not know the name $1: correct the endpoint, or what DNS says"},
	{regexp.MustCompile(`^.*lookup (\S+?)( on \S+)?: (.*)$`), "DNS does not tell where $1 is ($3): see /etc/resolv.conf, or name an address"},
	{regexp.MustCompile(`^.*dial unix \S+: connect: (permission denied)$`), "$1: the socket is for root and the user that etcd runs as"},
	{regexp.MustCompile(`^.*(connect: connection refused)$`), "connection refused: does etcd run there, and listen on this address?"},
	{regexp.MustCompile(`^EOF$`), "it closed the connection"},
	{regexp.MustCompile(`^.*server preface: .*HTTP/1.*$`), "it is a web server, or another that speaks HTTP/1 only: name etcd's client port"},
	{regexp.MustCompile(`(?s)^.*HTTP status code received from server: (\d+).*$`), "it is a web server (HTTP status $1): name etcd's client port"},
	{regexp.MustCompile(`^.*(missing selected ALPN property|no application protocol).*$`), "it speaks TLS, but not HTTP/2 as etcd does: name etcd's client port"},
	{regexp.MustCompile(`^.*server preface: .*(EOF|frame|connection reset).*$`), "it does not speak HTTP/2 without TLS: it may want https"},
	{regexp.MustCompile(`^authentication handshake failed: (EOF|.*connection reset by peer)$`), "it closed the connection during the TLS handshake: it may speak http only"},
	{regexp.MustCompile(`^authentication handshake failed: tls: first record does not look like a TLS handshake$`), "it does not speak TLS: it may speak http only"},
	{regexp.MustCompile(`^.*x509: certificate has expired.* is after (\S+)$`), "its certificate has ended at $1: renew it"},
	{regexp.MustCompile(`^.*x509: certificate has expired.* is before (\S+)$`), "its certificate begins to be valid at $1: is this host's clock right?"},
	{regexp.MustCompile(`^.*(tls: failed to verify certificate: x509: certificate signed by unknown authority).*$`), "$1: etcd-cafile must be of the CA that signed etcd's"},
	{regexp.MustCompile(`^.*(tls: failed to verify certificate: x509: .*)$`), "$1: name an endpoint as etcd's certificate does"},
	// What the net package puts before the cause: the addresses, which an endpoint says better.
	{regexp.MustCompile(`^(?:.*: )?(?:dial|read|write) (?:tcp|unix) \S+: (?:(?:connect|read|write): )?(.*)$`), "$1"},
	{regexp.MustCompile(`^(?:authentication handshake failed|error reading server preface): (.*)$`), "$1"},
}

// reason unwraps what gRPC says of a connection that failed, for example
//
//	connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:2379: connect: connection refused"
func reason(message string) string {
	if _, quoted, ok := strings.Cut(message, "connection error: desc = "); ok {
		if quoted, err := strconv.QuotedPrefix(quoted); err == nil {
			message, _ = strconv.Unquote(quoted) // a quoted prefix is one
		}
	}
	for _, wrapping := range []string{"transport: ", "Error while dialing: ", "error reading from server: "} {
		message = strings.TrimPrefix(message, wrapping)
	}
	for _, c := range causes {
		if c.said.MatchString(message) {
			return c.said.ReplaceAllString(message, c.means)
		}
	}
	return message
}
