package userspace

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/kernel"
)

// patience is how long a request may take: the process answers at once, but for 10,000 peers on a busy host.
const patience = 20 * time.Second

// dying is how long a process takes to be gone for good that was killed.
const dying = 100 * time.Millisecond

var errEnded = errors.New("it ended before it answered: see tun.log in the run directory, or journalctl -u overlayd-tun")

var _ kernel.UserSpace = (*Client)(nil)

// Client asks the process at the socket of a run directory. It implements kernel.UserSpace: where nobody listens there, it
// starts one. Of several daemons that do so at once, one starts it.
type Client struct {
	runDir  string
	log     *slog.Logger
	command func() (*exec.Cmd, error) // that starts the process
}

// New is for the daemon of a run directory.
func New(runDir string, log *slog.Logger) *Client { return &Client{runDir, log, beside} }

// WireGuard implements kernel.UserSpace.
func (c *Client) WireGuard(name string, mtu int) error {
	_, err := c.ask(Request{WireGuard: &WireGuard{Name: name, MTU: mtu}}, true)
	return err
}

// UDP implements kernel.UserSpace.
func (c *Client) UDP(u kernel.UDPTun) error {
	_, err := c.ask(Request{UDP: &UDP{Name: u.Name, Local: u.Local, Port: u.Port, MTU: u.MTU}}, true)
	return err
}

// SetUDPPeers implements kernel.UserSpace.
func (c *Client) SetUDPPeers(link string, put, gone []kernel.UDPPeer) error {
	p := Peers{Link: link, Put: make([]Peer, 0, len(put)), Gone: make([]netip.Prefix, 0, len(gone))}
	for _, peer := range put {
		p.Put = append(p.Put, Peer{Subnet: peer.Subnet, Host: peer.Host})
	}
	for _, peer := range gone {
		p.Gone = append(p.Gone, peer.Subnet)
	}
	_, err := c.ask(Request{Peers: &p}, true)
	return err
}

// UDPPeers implements kernel.UserSpace. A link that is not there has none.
func (c *Client) UDPPeers(link string) ([]kernel.UDPPeer, error) {
	there, err := c.There()
	var peers []kernel.UDPPeer
	for _, u := range there.UDP {
		if u.Name != link {
			continue
		}
		for _, p := range u.Peers {
			peers = append(peers, kernel.UDPPeer{Link: link, Subnet: p.Subnet, Host: p.Host})
		}
	}
	return peers, err
}

// There is what the process serves, and what that costs. Where there is no process the answer is empty: none is started.
func (c *Client) There() (Answer, error) {
	a, err := c.ask(Request{}, false)
	if nobody(err) {
		return Answer{}, nil
	}
	return a, err
}

// ask sends a request and waits for the answer. start: where nobody listens, somebody is made to.
func (c *Client) ask(r Request, start bool) (Answer, error) {
	a, err := c.askOnce(r, start)
	if errors.Is(err, errEnded) { // it was about to: the next may be there
		time.Sleep(dying)
		a, err = c.askOnce(r, start)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		return a, fmt.Errorf("overlayd-tun: %w", err)
	}
	return a, nil
}

func (c *Client) askOnce(r Request, start bool) (Answer, error) {
	conn, err := net.Dial("unix", c.socket())
	if start && nobody(err) {
		conn, err = c.start()
	}
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	return exchange(conn, r)
}

func (c *Client) socket() string { return filepath.Join(c.runDir, SocketName) }

func exchange(conn net.Conn, r Request) (a Answer, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return a, err
	}
	line, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	answer := bufio.NewScanner(conn)
	answer.Buffer(nil, MaxLine)
	_, err = conn.Write(append(line, '\n'))
	switch {
	case err == nil && answer.Scan():
		return a, json.Unmarshal(answer.Bytes(), &a)
	case err == nil:
		err = answer.Err()
	}
	if err == nil || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		err = errEnded
	}
	return a, err
}
