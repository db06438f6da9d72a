package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
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
func (c *Client) Status(ctx context.Context) (Status, error) { return ask[Status](ctx, c, "status") }

// Endpoints asks for the endpoints of this host, in the order of their namespaces and names.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return ask[[]Endpoint](ctx, c, "endpoints")
}

// Denials asks for what policies denied.
func (c *Client) Denials(ctx context.Context) (Denials, error) {
	return ask[Denials](ctx, c, "denials")
}

// SetFastPath has the daemon use the fast path, or not, until it starts again or its configuration is reloaded.
func (c *Client) SetFastPath(ctx context.Context, mode FastPathMode) error {
	return c.do(ctx, http.MethodPut, "fast-path", strings.NewReader(string(mode)), nil)
}

func ask[T any](ctx context.Context, c *Client, what string) (answer T, err error) {
	err = c.do(ctx, http.MethodGet, what, nil, &answer)
	return answer, err
}

// do sends a request, and reads the answer into what is not nil.
func (c *Client) do(ctx context.Context, method, what string, body io.Reader, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://overlayd/v1/"+what, body)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.explain(err)
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusNoContent && into == nil:
		return nil
	case response.StatusCode == http.StatusForbidden:
		return fmt.Errorf("overlayd at %s lets only root change anything", c.socket)
	case response.StatusCode == http.StatusConflict:
		line, err := io.ReadAll(response.Body)
		return cmp.Or(err, errors.New(strings.TrimSpace(string(line))))
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("ask overlayd at %s: %s", c.socket, response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("ask overlayd at %s: %w", c.socket, err)
	}
	return nil
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
