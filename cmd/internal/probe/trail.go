package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
)

// The places where an echo is seen, and then its answer, in their order.
const (
	nowhere = iota
	arrived // at the host
	forwarded
	left
	answerArrived
	answerForwarded
	answerLeft
)

// table has a chain at each place, before those of others where packets arrive and after them where they leave. It is
// gone when who made it ends. nft takes a line at a time.
const table = "table inet %[1]s { flags owner; " +
	"chain pre { type filter hook prerouting priority -2000000000; %[2]s saddr %[3]s meta nftrace set 1; %[2]s daddr %[3]s meta nftrace set 1; }; " +
	"chain forward { type filter hook forward priority -2000000000; }; " +
	"chain post { type filter hook postrouting priority 2000000000; }; }\n"

// trail is what the kernel tells of the way of a container's packets and of the answers.
type trail struct {
	table string
	from  string // the container's address
	stop  func() error

	mu   sync.Mutex
	seen int    // the last place
	link string // by which it came there
	drop string // the first chain and rule that dropped it: "ip raw PREROUTING: …"
	base string // the chain that the hook begins with
	ufw  bool   // it came through chains of ufw's
	runs map[string]run
}

// run is a packet in the chains of a hook.
type run struct {
	answer     bool
	link, base string
}

// follow has nft tell the way of what an address sends and receives, until stop is called. The error says why it cannot.
func follow(ctx context.Context, from netip.Addr) (*trail, error) {
	t := &trail{table: fmt.Sprintf("overlayprobe%d", os.Getpid()), from: from.String(), runs: map[string]run{}}
	t.stop = func() error { return nil }
	ctx, cancel := context.WithCancel(ctx)
	// Interactive, so that the table's owner lives until its input ends; its history is nowhere.
	owner, monitor := exec.CommandContext(ctx, "nft", "--interactive"), exec.CommandContext(ctx, "nft", "monitor", "trace")
	owner.Env = append(os.Environ(), "HOME=/dev/null")
	var said strings.Builder
	owner.Stderr = &said
	in, inErr := owner.StdinPipe()
	lines, outErr := monitor.StdoutPipe()
	if err := errors.Join(inErr, outErr, owner.Start()); err != nil {
		cancel()
		return t, err
	}
	family := "ip6"
	if from.Is4() {
		family = "ip"
	}
	_, err := fmt.Fprintf(in, table, t.table, family, from)
	err = errors.Join(err, monitor.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(lines); s.Scan(); {
			t.note(s.Text())
		}
	}()
	t.stop = sync.OnceValue(func() error {
		in.Close()
		_ = owner.Wait() // what it said counts
		cancel()
		<-read
		_ = monitor.Wait() // it was killed
		if line, _, _ := strings.Cut(said.String(), "\n"); line != "" {
			return fmt.Errorf("nft: %s", line)
		}
		return nil
	})
	return t, err
}

// place is the last at which anything was seen.
func (t *trail) place() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen
}

var (
	// traced is a line of nft monitor trace: the packet's id, family, table and chain, and what came of it.
	traced   = regexp.MustCompile(`^trace id (\S+) (\S+ (\S+) (\S+)) (.*)$`)
	incoming = regexp.MustCompile(`\biif "([^"]+)"`)
	counter  = regexp.MustCompile(` counter packets \d+ bytes \d+`)
)

// note takes down a line.
func (t *trail) note(line string) {
	m := traced.FindStringSubmatch(strings.TrimSpace(line))
	if m == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	id, chain, what := m[1], m[2], m[5]
	t.ufw = t.ufw || strings.Contains(line, " ufw-") // chain, or jump
	r := t.runs[id]
	if packet, ok := strings.CutPrefix(what, "packet:"); ok { // the first line of each base chain
		r = run{answer: strings.Contains(packet, " daddr "+t.from+" "), base: chain, link: r.link}
		if link := incoming.FindStringSubmatch(packet); link != nil {
			r.link = link[1]
		}
		t.runs[id] = r
		place := map[string]int{"pre": arrived, "forward": forwarded, "post": left}[m[4]]
		if r.answer {
			place += answerArrived - arrived
		}
		if m[3] == t.table && place > t.seen {
			t.seen, t.link = place, r.link
		}
	}
	rule, dropped := strings.CutSuffix(what, "(verdict drop)")
	if t.drop == "" && (dropped || what == "policy drop") {
		rule = counter.ReplaceAllString(strings.TrimSpace(strings.TrimPrefix(rule, "rule ")), "")
		t.drop, t.base = chain+": "+rule, r.base
	}
}
