package enrol

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/cmd/internal/certs"
)

const (
	// requestTime is how long a client may take to send a request, and to read the answer.
	requestTime = 10 * time.Second
	// workTime is how long etcd may take for one.
	workTime = 8 * time.Second
)

// Store is the network in etcd, see [etcdstore.Store].
type Store interface {
	Documents
	Network(ctx context.Context) (raw []byte, modRevision int64, err error)
}

// ServerConfig is what a joining endpoint is made of. Everything is required but Life.
type ServerConfig struct {
	Listen     string          // TCP address
	Authority  certs.Authority // signs
	Bundle     string          // file with the server's own certificate and key, read for each connection
	Store      Store
	Endpoints  func(local netip.Addr) []string // of etcd, for a host that has reached this one at local
	Prefix     string                          // of the network in etcd
	Life       time.Duration                   // of the certificates; 0: [Life]
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Server is a joining endpoint.
type Server struct {
	cfg      ServerConfig
	listener net.Listener
	tickets  *tickets
	guard    *guard
	requests *prometheus.CounterVec
	mu       sync.Mutex // one join at a time: they would only be in each other's way in etcd
}

// NewServer opens the endpoint's socket, at which clients wait for Run. A Server that is not Run must be closed.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Life == 0 {
		cfg.Life = Life
	}
	s := &Server{cfg: cfg, tickets: newTickets(), guard: newGuard(), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_join_requests_total",
		Help: "Requests for a certificate, by what became of them: joined, renewed, refused, wrong secret, too many wrong secrets, failed.",
	}, []string{"result"})}
	var err error
	if s.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("join-listen: %w", err)
	}
	return s, cfg.Registerer.Register(s.requests)
}

// Addr is where the endpoint listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close closes the endpoint.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/hello", serve(s, s.hello))
	mux.HandleFunc("POST /v1/join", serve(s, s.join))
	mux.HandleFunc("POST /v1/renew", serve(s, s.renew))
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: requestTime, // also of the handshake
		ReadTimeout:       requestTime,
		WriteTimeout:      2 * requestTime,
		IdleTimeout:       requestTime,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // strangers' handshakes
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	var registering sync.WaitGroup
	registering.Go(func() { s.register(ctx) })
	defer registering.Wait()
	err := server.Serve(tls.NewListener(&limited{Listener: s.listener, by: map[netip.Prefix]int{}}, &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: s.certificate,
		ClientAuth:     tls.RequestClientCert, // who joins has none; who had one and slept shows one that has ended
	}))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
}

// certificate is the server's, and the CA's, by which clients know that it is the right one.
func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := LoadPair(s.cfg.Bundle)
	if err != nil {
		return nil, err
	}
	cert.Certificate = append(cert.Certificate[:1], s.cfg.Authority.Certificate().Raw)
	return &cert, nil
}

// register notes this host among those that have joined, as soon as etcd answers: it has signed for itself.
func (s *Server) register(ctx context.Context) {
	for {
		err := s.registerOnce(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.cfg.Log.Warn("this host is not in the list of hosts yet", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (s *Server) registerOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, workTime)
	defer cancel()
	cert, err := certs.Read(s.cfg.Bundle)
	if err != nil {
		return err
	}
	w := holder(cert)
	d, err := s.cfg.Store.Document(ctx, hostKind, w.Host)
	if err != nil || d.Revision != 0 {
		return err
	}
	record := HostRecord{
		Name: w.Name, Addresses: w.IPs, Joined: time.Now().UTC().Truncate(time.Second),
		Serial: cert.SerialNumber.Text(16), Member: w.Member,
	}
	return put(ctx, s.cfg.Store, hostKind, d, record, 0)
}

// refusal is an answer that says no.
type refusal struct {
	code   int
	result string // for the metric
	text   string
}

func (r refusal) Error() string { return r.text }

func refuse(code int, format string, args ...any) refusal {
	return refusal{code, "refused", fmt.Sprintf(format, args...)}
}

// serve reads one request, has it answered, and writes the answer.
func serve[Q, A any](s *Server, answer func(context.Context, *http.Request, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), workTime)
		defer cancel()
		var question Q
		err := decodeStrictly(http.MaxBytesReader(w, r.Body, maxBody), &question)
		var reply any
		if err != nil {
			err = refuse(http.StatusBadRequest, "the request is not understood: %v", err)
		} else {
			reply, err = answer(ctx, r, question)
		}
		code := http.StatusOK
		if err != nil {
			code, reply = s.complain(r, err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(reply) // an error is the client's going away
	}
}

// complain logs and counts what went wrong, and words the answer: what etcd said is not for the other side.
func (s *Server) complain(r *http.Request, err error) (code int, reply refused) {
	from := addrOf(remote(r))
	no, ok := errors.AsType[refusal](err)
	if !ok {
		s.cfg.Log.Error("cannot answer a host that asks for a certificate", "from", from, "err", err)
		no = refusal{http.StatusServiceUnavailable, "failed", "overlayd cannot do it now; its log says why"}
	} else {
		s.cfg.Log.Warn("refused a host that asks for a certificate", "from", from, "err", no.text)
	}
	s.requests.WithLabelValues(no.result).Inc()
	return no.code, refused{no.text}
}

// decodeStrictly reads one JSON object that has no key that is not known, and nothing after it.
func decodeStrictly(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// remote is the other end of the request's connection.
func remote(r *http.Request) net.Addr {
	addr, err := netip.ParseAddrPort(r.RemoteAddr) // net/http has made it of one
	if err != nil {
		return nil
	}
	return net.TCPAddrFromAddrPort(addr)
}

// local is this end of it.
func local(r *http.Request) netip.Addr {
	a, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return addrOf(a)
}
