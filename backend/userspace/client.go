package userspace

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/overlayd/overlayd/backend/kernel"
)

// patience is how long a request may take: the process answers at once, but for 10,000 peers on a busy host.
const patience = 20 * time.Second

var _ kernel.UserSpace = (*Client)(nil)

// Client asks the process at the socket of a run directory. It implements kernel.UserSpace: where nobody listens there, it
// starts one. Of several daemons that do so at once, one starts it.
type Client struct {
	runDir string
	log    *slog.Logger
}

// New is for the daemon of a run directory.
func New(runDir string, log *slog.Logger) *Client { return &Client{runDir: runDir, log: log} }

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
	conn, err := net.Dial("unix", c.socket())
	if start && nobody(err) {
		conn, err = c.start()
	}
	if err != nil {
		return Answer{}, fmt.Errorf("overlayd-tun: %w", err)
	}
	defer conn.Close()
	a, err := exchange(conn, r)
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		return a, fmt.Errorf("overlayd-tun: %w", err)
	}
	return a, nil
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
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return a, err
	}
	answer := bufio.NewScanner(conn)
	answer.Buffer(nil, MaxLine)
	if !answer.Scan() {
		if err = answer.Err(); err == nil {
			err = errors.New("it ended before it answered: see its log")
		}
		return a, err
	}
	return a, json.Unmarshal(answer.Bytes(), &a)
}
