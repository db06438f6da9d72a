package kernel

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// FuzzMessages: what comes from a socket must not make us panic, whatever it is.
func FuzzMessages(f *testing.F) {
	var b batch
	for _, o := range overlays() {
		o.link.create(&b, 7)
		for _, object := range append(o.self()[1:], o.peer(1)...) {
			object.(entry).encode(&b, put, 7)
		}
	}
	f.Add(b.buf)
	f.Fuzz(func(_ *testing.T, piece []byte) {
		names := map[int32]string{7: "overlay.1"}
		for h, body := range messages(piece) {
			_ = answer(h, body)
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
		far := FDB{Link: "overlay.1", MAC: peerMAC(2), Dst: o.vtep(2), Port: 4789}
		for _, object := range append(append(o.self()[1:], o.peer(1)...), far) {
			var b batch
			object.(entry).encode(&b, put, 7)
			decode := map[Kind]func([]byte, map[int32]string) found{
				KindAddress: decodeAddress, KindNeighbour: decodeNeighbour, KindFDB: decodeFDB, KindRoute: decodeRoute,
			}[object.Kind()]
			for _, body := range messages(b.buf) {
				if got, want := decode(body, names), (found{object, ours}); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			}
		}
		var b batch
		o.link.GBP, o.link.Learning = true, true
		o.link.create(&b, 3)
		for _, body := range messages(b.buf) {
			if got := decodeLink(body); !got.is(o.link, 3) {
				t.Errorf("got %+v, want %+v", got, o.link)
			}
		}
	}
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	errno := func(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }
	var text batch
	text.attrString(unix.NLMSGERR_ATTR_MSG, "no way")
	request := make([]byte, unix.NLMSG_HDRLEN)
	for _, test := range []struct {
		name  string
		flags uint16
		body  []byte
		want  string
		is    error
	}{
		{"too short", 0, []byte{1}, "", nil},
		{"success", unix.NLM_F_CAPPED, append(errno(0), request...), "", nil},
		{"errno", unix.NLM_F_CAPPED, append(errno(unix.ESRCH), request...), "no such process", unix.ESRCH},
		{
			"with text", unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS, append(append(errno(unix.EINVAL), request...), text.buf...),
			"invalid argument (no way)", unix.EINVAL,
		},
		{"text cut off", unix.NLM_F_ACK_TLVS, append(append(errno(unix.EINVAL), request...), 9, 0), "invalid argument", unix.EINVAL},
	} {
		err := answer(unix.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: test.flags}, test.body)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != test.want || !errors.Is(err, test.is) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// The answers belong to the requests, also to those that came before an error.
func TestExecMatchesAnswers(t *testing.T) {
	t.Parallel()
	o := overlays()[0]
	ns := testHost(t)
	for _, object := range o.self() {
		sh(t, ns, object.String())
	}
	c, err := dial(ns, answersSize)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	var index int32
	all, err := c.links(new(batch))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if l.name == o.link.Name {
			index = l.index
		}
	}
	for _, bad := range [][]int{nil, {0}, {299}, {7, 8, 150}, {0, 299}} {
		var b batch
		isBad := map[int]bool{}
		for _, i := range bad {
			isBad[i] = true
		}
		for i := range batchSize {
			at := index
			if isBad[i] {
				at = 9999
			}
			o.peer(i + 1)[0].(entry).encode(&b, put, at)
		}
		failed, err := c.exec(&b, nil)
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
	freshNetns(t) // skips where we are not root anyway
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
