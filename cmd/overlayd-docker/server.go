package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

const (
	limit      = 60 * time.Second // for one call, as the CNI plugin has it
	maxRequest = 4 << 20
)

// listen is the socket that systemd hands over, or else a new one at path, where there must be nobody who answers.
func listen(path string) (net.Listener, error) {
	given, err := activation.Listeners()
	if err != nil {
		return nil, err
	}
	if len(given) == 1 && given[0] != nil {
		return given[0], nil
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another overlayd-docker answers there: stop it first (systemctl stop overlayd-docker.socket overlayd-docker)", path)
	} else if errors.Is(err, unix.ECONNREFUSED) { // of one that was killed
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	return l, err
}

// serve answers until ctx ends; calls that go on then end first.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: limit}
	defer context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_ = s.Shutdown(end) // whoever has not ended by then is cut off
	})()
	err := s.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return s.Shutdown(context.Background()) // Serve returns when that begins
}

// failure is an answer that says why not, under both of the protocol's names: of network drivers and of IPAM's.
type failure struct {
	Err   string
	Error string
}

// errAgain is the answer to a call without what it is about. Docker's client makes one of a call to which it got no answer: it sends
// what it has sent before, and of that there is no more to read.
var errAgain = errors.New("asked again by Docker, which does not say what: overlayd-docker was ended while it answered: try again")

// answer serves one call of the protocol: a JSON object in and one out. What cannot be read is the caller's fault (400); what cannot
// be done is said in the answer.
func answer[Q, A any](log *slog.Logger, call func(context.Context, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if _, nothing := any(q).(json.RawMessage); err == nil && !nothing {
			if len(bytes.TrimSpace(body)) == 0 {
				err = errAgain
			} else {
				err = json.Unmarshal(body, &q)
			}
		}
		if err != nil {
			log.Warn("cannot read what is asked", "call", r.URL.Path, "err", err)
			http.Error(w, "overlayd-docker: "+err.Error(), http.StatusBadRequest)
			return
		}
		// Whoever hangs up must not leave something half done.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), limit)
		defer cancel()
		var out any
		out, err = call(ctx, q)
		if err != nil {
			log.Warn("refused", "call", r.URL.Path, "err", err)
			line := strings.ReplaceAll(err.Error(), "\n", "; ")
			out = failure{line, line}
		}
		w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
		if err := json.NewEncoder(w).Encode(out); err != nil {
			log.Warn("cannot answer", "call", r.URL.Path, "err", err)
		}
	}
}

// none is an empty object: of calls that ask, or say, nothing.
type none struct{}

// handler has all calls of the protocol.
func (d *driver) handler() http.Handler {
	m := http.NewServeMux()
	on := func(path string, h http.HandlerFunc) { m.HandleFunc("POST /"+path, h) }
	nothing := answer(d.log, func(context.Context, json.RawMessage) (none, error) { return none{}, nil })

	on("Plugin.Activate", says(d.log, map[string][]string{"Implements": {"NetworkDriver", "IpamDriver"}}))
	on("NetworkDriver.GetCapabilities", says(d.log, map[string]string{"Scope": "local", "ConnectivityScope": "global"}))
	on("NetworkDriver.CreateNetwork", answer(d.log, d.createNetwork))
	on("NetworkDriver.DeleteNetwork", answer(d.log, d.deleteNetwork))
	on("NetworkDriver.CreateEndpoint", answer(d.log, d.createEndpoint))
	on("NetworkDriver.EndpointOperInfo", answer(d.log, d.endpointInfo))
	on("NetworkDriver.DeleteEndpoint", answer(d.log, d.deleteEndpoint))
	on("NetworkDriver.Join", answer(d.log, d.join))
	on("NetworkDriver.Leave", nothing) // what is left is removed with the endpoint, to which Docker gives the interface back
	on("NetworkDriver.ProgramExternalConnectivity", answer(d.log, d.openPorts))
	on("NetworkDriver.RevokeExternalConnectivity", answer(d.log, d.closePorts))
	on("NetworkDriver.DiscoverNew", nothing) // of other hosts overlayd knows
	on("NetworkDriver.DiscoverDelete", nothing)

	// One address space for both: newer Dockers would ask again and again for a pool that overlaps no route of the host, and the
	// lease does as soon as there is a container.
	on("IpamDriver.GetDefaultAddressSpaces", says(d.log, map[string]string{"LocalDefaultAddressSpace": addressSpace, "GlobalDefaultAddressSpace": addressSpace}))
	on("IpamDriver.GetCapabilities", says(d.log, map[string]bool{"RequiresMACAddress": false, "RequiresRequestReplay": false}))
	on("IpamDriver.RequestPool", answer(d.log, d.requestPool))
	on("IpamDriver.ReleasePool", nothing)
	on("IpamDriver.RequestAddress", answer(d.log, d.requestAddress))
	on("IpamDriver.ReleaseAddress", answer(d.log, d.releaseAddress))
	return m
}

// says answers always the same.
func says[A any](log *slog.Logger, a A) http.HandlerFunc {
	return answer(log, func(context.Context, json.RawMessage) (A, error) { return a, nil })
}
