package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
)

// docker asks Docker.
type docker struct {
	socket string
	client *http.Client
}

func newDocker(socket string) *docker {
	return &docker{socket, &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}}
}

// get asks for something that is read by whoever closes it.
func (d *docker) get(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := d.client.Do(request)
	if said, ok := errors.AsType[*url.Error](err); ok {
		err = said.Err // the rest is long, and of ours
	}
	if err != nil {
		return nil, fmt.Errorf("dockerd at %s: %w", d.socket, err)
	}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		response.Body.Close()
		return nil, fmt.Errorf("GET %s: %s: %s", path, response.Status, strings.TrimSpace(string(text)))
	}
	return response.Body, nil
}

// read asks for JSON.
func (d *docker) read(ctx context.Context, path string, into any) error {
	body, err := d.get(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxDockerList)).Decode(into); err != nil {
		return fmt.Errorf("GET %s of %s: %w", path, d.socket, err)
	}
	return nil
}

// container is one of GET /containers/json.
type container struct {
	ID              string `json:"Id"`
	Names           []string
	Labels          map[string]string
	NetworkSettings struct {
		Networks map[string]struct{ EndpointID, IPAddress, GlobalIPv6Address string }
	}
}

// lookup finds out whose endpoint it is that is being made: Docker names the container to no driver, but lists the endpoint on its
// network under the container's name.
func (d *docker) lookup(ctx context.Context, networkID, endpointID string) (c container, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var n struct {
		Containers map[string]struct{ Name, EndpointID string }
	}
	if err := d.read(ctx, "/networks/"+url.PathEscape(networkID), &n); err != nil {
		return c, err
	}
	for _, e := range n.Containers {
		if e.EndpointID != endpointID {
			continue
		}
		filter, err := json.Marshal(map[string][]string{"name": {"^/" + regexp.QuoteMeta(e.Name) + "$"}})
		if err != nil {
			return c, err
		}
		var all []container
		if err := d.read(ctx, "/containers/json?all=1&filters="+url.QueryEscape(string(filter)), &all); err != nil {
			return c, err
		}
		if len(all) == 1 {
			return all[0], nil
		}
	}
	return c, fmt.Errorf("endpoint %s: Docker does not say whose it is", endpointID)
}

// name is what people call the container.
func (c container) name() string {
	if len(c.Names) == 0 {
		return c.ID
	}
	return strings.TrimPrefix(c.Names[0], "/")
}

// given is what policies go by.
func (c container) given() identity.Given {
	return identity.Given{ContainerID: c.ID, Runtime: &identity.Runtime{ID: c.name(), Labels: c.Labels}}
}

// identify finds out what the container is to policies. Should Docker not say, the follower corrects it as soon as the container is
// listed.
func (d *driver) identify(ctx context.Context, q join, a *attachment.Attachment) {
	c, err := d.docker.lookup(ctx, q.NetworkID, q.EndpointID)
	if err != nil {
		id, _ := identity.Derive(identity.Given{ContainerID: q.EndpointID})
		a.Endpoint, a.EndpointNotes = &id, []string{err.Error()}
		return
	}
	id, notes := identity.Derive(c.given())
	a.Endpoint, a.EndpointNotes = &id, notes
	a.Labels["DOCKER_CONTAINER_ID"] = c.ID
}
