package policy

import (
	"strings"
	"testing"
)

// TestNoBridgeNetfilter has hosts whose kernels show no bridge's traffic to nftables: policies hold between containers of one host
// all the same, streams that are allowed lose nothing when it begins, and status and doctor say so.
func TestNoBridgeNetfilter(t *testing.T) {
	t.Setenv(unseenEnv, "1")
	p := newPaths(t)
	h := p.hosts[0]
	l := &living{t: t, port: 7100}
	var streams []*stream
	for f := range families {
		for _, proto := range []string{"tcp", "udp"} {
			streams = append(streams, l.open(proto, p.near, p.web, f), l.open(proto, p.web, p.near, f), l.open(proto, p.far, p.web, f))
		}
	}
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: web}}, "+both+", ingress: [{from: [{podSelector: {matchLabels: {app: near}}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}}]}], "+
		"egress: [{to: [{podSelector: {matchLabels: {app: near}}}]}]}"))
	p.check("allowed by label")
	for _, s := range streams {
		s.lossless(t)
		s.stop()
	}
	h.says("it is routed", func() bool { s := h.policyStatus(); return s.Routed && s.InStep && s.Error == "" })
	for command, words := range map[string]string{"status": "routed: there is no br_netfilter", "doctor": "br_netfilter is not there"} {
		if out, err := h.overlayctl("", command); !strings.Contains(out, words) {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
	p.pods = append(p.pods, p.newPod(h, "dev", "late", map[string]string{"app": "late"}))
	p.check("another container")
	p.judge("published ports, and hairpin", append(p.byPort(p.near, true), append(p.byPort(p.web, true), p.byPort(p.pods[3], false)...)...))
	p.apply("dev", netpolText("dev", "p", "{podSelector: {}}"))
	p.check("all denied")
	h.exec("nft", "flush", "ruleset")
	p.check("flushed")
	h.daemon.Kill()
	h.start()
	h.waitReady()
	p.check("a daemon anew")
	p.remove("dev/p")
	p.check("no policy any more")
	if out := h.exec("nft", "list", "tables"); strings.Contains(out, "overlayd_policy") {
		t.Errorf("left: %s", out)
	}
	total.addCase()
}
