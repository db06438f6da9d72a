package kernel

import "context"

// programPeers puts or removes the pending peers of wireguard links and of flannel's udp.
func (r *Reconciler) programPeers(_ context.Context, op op) {
	t := r.claims.trackers[KindPeer]
	for _, e := range t.take(op) {
		t.done(e)
	}
}
