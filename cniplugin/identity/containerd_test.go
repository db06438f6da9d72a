package identity

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// field and entry of a message of protocol buffers, for the fake.
func pb(number uint64, value string) string {
	b := binary.AppendUvarint(nil, number<<3|2)
	return string(binary.AppendUvarint(b, uint64(len(value)))) + value
}

func entry(key, value string) string { return pb(1, key) + pb(2, value) }

// fakeContainerd serves what containers and sandboxes it has, by namespace/id, with the standard library's HTTP/2.
func fakeContainerd(t *testing.T, containers, sandboxes map[string]map[string]string, extra int) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) < 7 {
			t.Errorf("request %q: %v", body, err)
			return
		}
		id := string(field(body[5:], 1))
		key := r.Header.Get("Containerd-Namespace") + "/" + id
		w.Header().Set("Content-Type", "application/grpc")
		answer := ""
		switch labels, isContainer := containers[key]; {
		case strings.HasSuffix(r.URL.Path, "containers.v1.Containers/Get") && isContainer:
			answer = pb(1, id)
			for k, v := range labels {
				answer += pb(2, entry(k, v))
			}
			answer += pb(5, strings.Repeat("spec", extra))
		case strings.HasSuffix(r.URL.Path, "sandbox.v1.Store/Get") && sandboxes[key] != nil:
			metadata, _ := json.Marshal(map[string]any{"Version": "v1", "Metadata": map[string]any{"Config": map[string]any{"labels": sandboxes[key]}}})
			answer = pb(1, id) + "\x28\x05" + pb(7, entry("other", pb(2, "{}"))) + pb(7, entry("metadata", pb(1, "url")+pb(2, string(metadata))))
		default:
			w.Header().Set("Grpc-Status", "5")
			return
		}
		answer = pb(1, answer)
		_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(answer))), answer...))
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	})}
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return socket
}

func TestLookup(t *testing.T) {
	t.Parallel()
	web, pod := map[string]string{"app": "web"}, map[string]string{"app": "pod"}
	socket := fakeContainerd(t, map[string]map[string]string{
		"default/web": web, "my-ns/a-b": web, "k8s.io/f00d": pod, "twice/is-here": web, "twice-is/here": pod,
	}, map[string]map[string]string{"k8s.io/beef": pod}, 100<<10)
	for _, c := range []struct {
		id, args string
		want     *Runtime
		err      string
	}{
		{"default-web", "", &Runtime{"default", "web", web}, ""},
		{"my-ns-a-b", "", &Runtime{"my-ns", "a-b", web}, ""},
		{"f00d", "K8S_POD_NAME=p", &Runtime{"k8s.io", "f00d", pod}, ""},
		{"beef", "K8S_POD_NAME=p", &Runtime{"k8s.io", "beef", pod}, ""},
		{"default-other", "", nil, ""},
		{"beef", "", nil, ""},
		{"default-web", "NOMAD_ALLOC_ID=default-web", nil, ""},
		{"-default-web-", "", nil, ""},
		{"default-" + strings.Repeat("x", 500), "", nil, ""},
		{"twice-is-here", "", nil, "it is not clear which is attached"},
	} {
		got, err := Lookup(t.Context(), socket, c.id, c.args)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.id, diff)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.id, err, c.err)
		}
	}
}

// TestLookupLies has somebody else answer in containerd's place, or nobody: it costs no more than the time that it may.
func TestLookupLies(t *testing.T) {
	t.Parallel()
	settings := string(frame(nil, frameSettings, 0, 0, nil))
	for name, c := range map[string]struct {
		says  string
		holds bool // the connection stays
		err   string
	}{
		"nothing":                      {"", true, "i/o timeout"},
		"hangs up":                     {"", false, "EOF"},
		"HTTP/1":                       {"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + strings.Repeat("x", 100), false, "a frame of"},
		"settings alone":               {settings, true, "i/o timeout"},
		"a frame of 16 MB":             {"\xff\xff\xff\x00\x00\x00\x00\x00\x01", true, "a frame of 16777215 bytes"},
		"padding alone":                {string(frame(nil, frameData, flagPadded, 1, []byte{200})), true, "padding alone"},
		"data without an end":          {strings.Repeat(string(frame(nil, frameData, 0, 1, make([]byte, maxFrame))), 400), true, "EOF"},
		"others' streams":              {strings.Repeat(string(frame(nil, frameData, flagEndStream, 0xffff, nil)), 400), true, "i/o timeout"},
		"GOAWAY":                       {string(frame(nil, frameGoAway, 0, 0, make([]byte, 8))), true, "hung up"},
		"a length that is not":         {string(frame(nil, frameData, flagEndStream, 1, []byte{0, 0xff, 0xff, 0xff, 0xff, 10})), true, ""},
		"a message that is not":        {string(frame(nil, frameData, flagEndStream, 1, []byte{0, 0, 0, 0, 3, 0x0a, 0xff, 0xff})), true, ""},
		"a field that goes nowhere":    {string(frame(nil, frameData, flagEndStream, 1, []byte{0, 0, 0, 0, 2, 0x09, 1})), true, ""},
		"another container than asked": {string(frame(nil, frameData, flagEndStream, 1, []byte("\x00\x00\x00\x00\x05\x0a\x03\x0a\x01x"))), true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 1<<10))
				_, _ = conn.Write([]byte(c.says))
				if c.holds {
					_, _ = io.Copy(io.Discard, conn)
				}
			}()
			start := time.Now()
			got, err := Lookup(t.Context(), socket, "default-web", "")
			if got != nil || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v, %v; want an error with %q", got, err, c.err)
			}
			if took := time.Since(start); took > 10*patience {
				t.Errorf("it took %v", took)
			}
		})
	}
	for _, socket := range []string{"", "/nowhere/s", t.TempDir()} {
		if got, err := Lookup(t.Context(), socket, "default-web", ""); got != nil || err != nil {
			t.Errorf("socket %q: %+v, %v", socket, got, err)
		}
	}
}

func FuzzLabels(f *testing.F) {
	f.Add([]byte(pb(1, pb(1, "x")+pb(2, entry("a", "b"))+pb(7, entry("metadata", pb(2, "{}"))))))
	f.Fuzz(func(_ *testing.T, data []byte) {
		labelsOfContainer(data, "x")
		labelsOfSandbox(data, "x")
	})
}

func BenchmarkLookup(b *testing.B) {
	socket := "/run/containerd/containerd.sock"
	for b.Loop() {
		_, _ = Lookup(b.Context(), socket, "default-web", "")
	}
}
