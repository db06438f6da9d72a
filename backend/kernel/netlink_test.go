package kernel

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// FuzzMessages: what comes from a socket must not make us panic, whatever it is.
func FuzzMessages(f *testing.F) {
	var b rtnl.Batch
	for _, o := range overlays() {
		o.link.create(&b, 7)
		for _, object := range append(o.self()[1:], o.peer(1)...) {
			object.(entry).encode(&b, put, 7)
		}
	}
	f.Add(b.Bytes())
	f.Fuzz(func(_ *testing.T, piece []byte) {
		names := map[int32]string{7: "overlay.1"}
		for _, body := range rtnl.Messages(piece) {
			decodeLink(body)
			decodeAddress(body, names)
			decodeNeighbour(body, names)
			decodeFDB(body, names)
			decodeRoute(body, names)
		}
	})
}

// What we ask for is what we understand.
func TestEncodeDecode(t *testing.T) {
	t.Parallel()
	names := map[int32]string{7: "overlay.1"}
	for _, o := range overlays() {
		o.link.Name, o.own.Link = "overlay.1", "overlay.1"
		into := Route{Dst: o.subnet(3), Link: "overlay.1"}
		far := FDB{Link: "overlay.1", MAC: peerMAC(2), Dst: o.vtep(2), Port: 4789}
		for _, object := range append(append(o.self()[1:], o.peer(1)...), far, into) {
			var b rtnl.Batch
			object.(entry).encode(&b, put, 7)
			decode := map[Kind]func([]byte, map[int32]string) found{
				KindAddress: decodeAddress, KindNeighbour: decodeNeighbour, KindFDB: decodeFDB, KindRoute: decodeRoute,
			}[object.Kind()]
			for _, body := range rtnl.Messages(b.Bytes()) {
				if got, want := decode(body, names), (found{object, ours}); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			}
		}
		var b rtnl.Batch
		o.link.GBP, o.link.Learning = true, true
		o.link.create(&b, 3)
		var got link
		for _, body := range rtnl.Messages(b.Bytes()) {
			if next := decodeLink(body); next.info != nil {
				got = next
			} else { // it is made in several steps
				got.up, got.arp = next.up, next.arp
			}
		}
		if !o.link.is(got, 3) {
			t.Errorf("got %+v, want %+v", got, o.link)
		}
	}
}

// The answers belong to the requests, also to those that came before an error.
func TestExecMatchesAnswers(t *testing.T) {
	t.Parallel()
	o := overlays()[0]
	ns := testHost(t)
	for _, object := range o.self() {
		nstest.Sh(t, ns, object.String())
	}
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var index int32
	all, err := dumpLinks(c, new(rtnl.Batch))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if l.name == o.link.Name {
			index = l.index
		}
	}
	for _, bad := range [][]int{nil, {0}, {299}, {7, 8, 150}, {0, 299}} {
		var b rtnl.Batch
		isBad := map[int]bool{}
		for _, i := range bad {
			isBad[i] = true
		}
		for i := range rtnl.BatchSize {
			at := index
			if isBad[i] {
				at = 9999
			}
			o.peer(i + 1)[0].(entry).encode(&b, put, at)
		}
		failed, err := c.Exec(&b, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := map[int]bool{}
		for i, err := range failed {
			if !errors.Is(err, unix.ENODEV) {
				t.Errorf("request %d: %v", i, err)
			}
			got[i] = true
		}
		if diff := cmp.Diff(isBad, got); diff != "" {
			t.Errorf("failed (-want +got):\n%s", diff)
		}
	}
}

func TestNewWithoutCapability(t *testing.T) {
	t.Parallel()
	nstest.New(t) // skips where we are not root anyway
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its lack of capabilities
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&h, &none[0]); err != nil {
			done <- err
			return
		}
		_, err := New(Config{})
		done <- err
	}()
	if err := <-done; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("error %v", err)
	}
}
