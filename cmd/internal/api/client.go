package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
)

// Client asks the daemon over its unix socket.
type Client struct {
	socket string
	http   http.Client
}

// Dial returns a client of the daemon that listens on socket. It connects when it is asked something.
func Dial(socket string) *Client {
	return &Client{
		socket: socket,
		http: http.Client{Transport: &http.Transport{
			DisableKeepAlives: true, // a command asks once
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		}},
	}
}

// Status asks for the daemon's state. The error says what to do if the daemon is not running.
func (c *Client) Status(ctx context.Context) (Status, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://overlayd/v1/status", nil)
	if err != nil {
		return Status{}, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return Status{}, c.explain(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return Status{}, fmt.Errorf("ask overlayd at %s: %s", c.socket, response.Status)
	}
	var status Status
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		return Status{}, fmt.Errorf("ask overlayd at %s: %w", c.socket, err)
	}
	return status, nil
}

func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("overlayd is not running: nothing listens on %s (see: systemctl status overlayd)", c.socket)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: %w: ask as root or as a member of its group", c.socket, syscall.EACCES)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("overlayd does not answer on %s: %w", c.socket, context.DeadlineExceeded)
	}
	return fmt.Errorf("ask overlayd at %s: %w", c.socket, err)
}
