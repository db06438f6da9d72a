package etcdstore

import (
	"errors"
	"testing"
	"time"
)

// What etcd told is not lost when the connection fails before the reader of the mirror has taken it: the watch goes on
// behind it.
func TestCutLosesNoEvent(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	m := newMirror(s.client, s.log, keyRange{s.leasePrefix(), true})
	go m.Run(t.Context())
	heard, want := 0, 0
	for round := range 5 {
		for { // until etcd is followed
			news := <-m.told
			if e, ok := news.(events); ok {
				heard += len(e.all)
			}
			if l, ok := news.(linked); ok {
				for i := range 5 {
					etcd.put(t, subnets+peerKey(10*round+i), peerValue(i))
					want++
				}
				eventually(t, "the reader is behind", func() bool { return len(m.told) == cap(m.told) })
				time.Sleep(20 * time.Millisecond) // and the mirror waits for it
				l.fail(errors.New("the connection breaks"))
				time.Sleep(20 * time.Millisecond)
				break
			}
		}
	}
	etcd.put(t, subnets+peerKey(99), peerValue(99))
	for last := ""; last != subnets+peerKey(99); {
		if e, ok := (<-m.told).(events); ok {
			heard += len(e.all)
			last = string(e.all[len(e.all)-1].Kv.Key)
		}
	}
	if heard != want+1 {
		t.Errorf("heard of %d changes of %d", heard, want+1)
	}
}
