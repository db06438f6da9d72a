package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lines are what a logger has written, without the time.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, text, _ := bytes.Cut(p, []byte(" "))
	return l.buf.Write(text)
}

// take returns what came since the last call.
func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.buf.Reset()
	return l.buf.String()
}

// TestOneLineAMinute for each cause, and the last of it is always told.
func TestOneLineAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lines
		log, err := newLogger(&out, slog.LevelDebug, "text")
		if err != nil {
			t.Fatal(err)
		}
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, out.take()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		}
		fail := func(i int) {
			log.Error("needs attention", "err", fmt.Errorf("write /run/.subnet.env%d: read-only file system", 1000+i))
		}
		for i := range 67 { // in half a minute
			fail(i)
			time.Sleep(450 * time.Millisecond)
		}
		expect("level=ERROR msg=\"needs attention\" err=\"write /run/.subnet.env1000: read-only file system\"\n")
		log.Error("needs attention", "err", errors.New("another")) // is not held up by it
		expect("level=ERROR msg=\"needs attention\" err=another\n")
		time.Sleep(time.Minute)
		expect("level=ERROR msg=\"needs attention\" err=\"write /run/.subnet.env1066: read-only file system\" lines=66\n")
		fail(67)
		expect("") // the minute of the last line is not over
		time.Sleep(time.Minute)
		expect("level=ERROR msg=\"needs attention\" err=\"write /run/.subnet.env1067: read-only file system\" lines=1\n")
		time.Sleep(2 * time.Minute)
		fail(68)
		expect("level=ERROR msg=\"needs attention\" err=\"write /run/.subnet.env1068: read-only file system\"\n")

		// Of what changes to and fro the last is told.
		for _, text := range []string{"away", "back", "away"} {
			log.With("part", "x").Info(text)
		}
		expect("level=INFO msg=away part=x\nlevel=INFO msg=back part=x\n")
		time.Sleep(time.Minute)
		expect("level=INFO msg=away part=x lines=1\n")
		for range 3 {
			log.Debug("detail")
		}
		expect(strings.Repeat("level=DEBUG msg=detail\n", 3))
		time.Sleep(2 * time.Minute)
	})
}

// TestFloodOfCauses is ten lines and a sum.
func TestFloodOfCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lines
		log, _ := newLogger(&out, slog.LevelInfo, "text")
		for i := range 10_000 {
			log.Warn("skipped", "err", "key "+strings.Repeat("x", i%100)+strings.Repeat("y", i/100))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := out.take(); strings.Count(got, "\n") != 12 || !strings.Contains(got, "lines=9989") {
			t.Errorf("%d lines: %s", strings.Count(got, "\n"), got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		c := log.Handler().(calm)
		if n := len(c.seen["skipped"]); n != 0 {
			t.Errorf("%d causes are kept", n)
		}
	})
}

// TestServersLog: what net/http says of many clients is of one cause.
func TestServersLog(t *testing.T) {
	t.Parallel()
	var out lines
	log, _ := newLogger(&out, slog.LevelInfo, "text")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := http.Server{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic("always")
	})}
	go s.Serve(l)
	defer s.Close()
	for range 20 {
		if r, err := http.Get("http://" + l.Addr().String()); err == nil {
			r.Body.Close()
			t.Error("it answers")
		}
	}
	if got := out.take(); strings.Count(got, "panic serving") != 1 {
		t.Errorf("%s", got)
	}
}
