package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
)

const (
	dockerPrefix  = "docker-"             // of the files that are ours
	dockerPause   = time.Second           // before Docker is asked again
	dockerResync  = time.Minute           // is how often all are listed in any case
	dockerCalm    = 20 * time.Millisecond // is what follows an event is waited for
	maxDockerList = 256 << 20
)

func (a *app) dockerCommand() *cobra.Command {
	f := &dockerFollower{}
	cmd := &cobra.Command{
		Use:   "follow",
		Short: "Tell overlayd of Docker's containers on the overlay, until interrupted",
		Long: `Tell overlayd of Docker's containers on the overlay, until interrupted. Docker calls no CNI plugin: for policies to know
its containers somebody has to ask it who they are. Those with an address of the host's lease are written to the
directory endpoints below --run-dir. What a container's label overlayd/namespace says is its namespace, and what
overlayd/ports says (http:80/tcp) its named ports. The unit overlayd-docker.service runs this.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.runDir, f.log, f.said = a.settings.RunDir, slog.New(slog.NewTextHandler(a.stderr, nil)), map[string]string{}
			return f.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&f.socket, "docker-socket", "/run/docker.sock", "`socket` at which Docker listens")
	return group(&cobra.Command{Use: "docker", Short: "Bring Docker's containers to policies"}, cmd)
}

// dockerFollower has the files say what Docker does.
type dockerFollower struct {
	socket, runDir string
	log            *slog.Logger
	said           map[string]string // what was warned of, by container
}

// dockerContainer is one of GET /containers/json.
type dockerContainer struct {
	ID              string `json:"Id"`
	Names           []string
	Labels          map[string]string
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
	}
}

// run follows until ctx ends; then it returns nil, and the files stay: so do the containers. So do they while Docker is away.
func (f *dockerFollower) run(ctx context.Context) error {
	said := ""
	for ctx.Err() == nil {
		err := f.follow(ctx, func() {
			if said != "" {
				f.log.Info("Docker is there again")
			}
			said = ""
		})
		if ctx.Err() != nil {
			break
		}
		if err.Error() != said {
			f.log.Warn("cannot follow Docker: trying again", "err", err)
			said = err.Error()
		}
		select {
		case <-ctx.Done():
		case <-time.After(dockerPause):
		}
	}
	return nil
}

// follow lists all containers, and again after each event, until the events end. The stream is open before the first list is
// made, so that nothing gets lost between the two.
func (f *dockerFollower) follow(ctx context.Context, works func()) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", f.socket)
	}}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filter := url.QueryEscape(`{"type":["container","network"],"event":["start","restart","die","destroy","rename","connect","disconnect"]}`)
	events, err := dockerGet(ctx, client, "/events?filters="+filter)
	if err != nil {
		return err
	}
	defer events.Close()
	happened, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		for d := json.NewDecoder(events); ; {
			var event struct{} // whatever it was, the list says it
			if err := d.Decode(&event); err != nil {
				ended <- fmt.Errorf("events of %s: %w", f.socket, err)
				return
			}
			select {
			case happened <- struct{}{}:
			default:
			}
		}
	}()
	for again := time.NewTicker(dockerResync); ; {
		if err := f.sync(ctx, client); err != nil {
			return err
		}
		works()
		select {
		case err := <-ended:
			return err
		case <-again.C:
		case <-happened:
			time.Sleep(dockerCalm)
		}
	}
}

// dockerGet asks for something that is read by whoever closes it.
func dockerGet(ctx context.Context, client *http.Client, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		response.Body.Close()
		return nil, fmt.Errorf("GET %s: %s: %s", path, response.Status, strings.TrimSpace(string(text)))
	}
	return response.Body, nil
}

// sync writes the files of the containers that run now, and removes those of others.
func (f *dockerFollower) sync(ctx context.Context, client *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	body, err := dockerGet(ctx, client, "/containers/json")
	if err != nil {
		return err
	}
	defer body.Close()
	var all []dockerContainer
	if err := json.NewDecoder(io.LimitReader(body, maxDockerList)).Decode(&all); err != nil {
		return fmt.Errorf("containers of %s: %w", f.socket, err)
	}
	lease, err := subnet.ReadEnv(filepath.Join(f.runDir, "subnet.env"))
	if err != nil {
		return err
	}
	return f.write(all, lease.Subnets)
}

// write has the directory hold the containers with addresses in the subnets, and no others of Docker's.
func (f *dockerFollower) write(all []dockerContainer, subnets []netip.Prefix) error {
	dir := identity.Dir(f.runDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	kept := map[string]bool{}
	var errs []error
	for _, c := range all {
		e := c.endpoint(subnets, func(notes []string) { f.note(c.ID, notes) })
		if len(e.IPs) == 0 || !policy.ValidName(c.ID) {
			continue
		}
		kept[dockerPrefix+c.ID+".json"] = true
		errs = append(errs, identity.WriteFile(dir, dockerPrefix+c.ID, e))
	}
	entries, err := os.ReadDir(dir)
	errs = append(errs, err)
	for _, entry := range entries {
		id, isJSON := strings.CutSuffix(entry.Name(), ".json")
		if isJSON && strings.HasPrefix(id, dockerPrefix) && !kept[entry.Name()] {
			errs = append(errs, identity.RemoveFile(dir, id))
			delete(f.said, strings.TrimPrefix(id, dockerPrefix))
		}
	}
	return errors.Join(errs...)
}

// endpoint is the container as policies are to know it; without an address if it is not on the overlay.
func (c dockerContainer) endpoint(subnets []netip.Prefix, note func([]string)) (e policy.Endpoint) {
	for _, n := range c.NetworkSettings.Networks {
		for _, text := range []string{n.IPAddress, n.GlobalIPv6Address} {
			addr, err := netip.ParseAddr(text)
			ours := func(p netip.Prefix) bool { return p.Masked().Contains(addr) }
			if err == nil && slices.ContainsFunc(subnets, ours) && len(e.IPs) < policy.MaxIPs {
				e.IPs = append(e.IPs, addr)
			}
		}
	}
	if len(e.IPs) == 0 {
		return e
	}
	slices.SortFunc(e.IPs, netip.Addr.Compare)
	name := c.ID
	if len(c.Names) > 0 {
		name = strings.TrimPrefix(c.Names[0], "/")
	}
	id, dropped := identity.Derive(identity.Given{ContainerID: c.ID, Runtime: &identity.Runtime{ID: name, Labels: c.Labels}})
	e.Identity = id
	note(dropped)
	return e
}

// note tells once of what was dropped of a container.
func (f *dockerFollower) note(id string, notes []string) {
	text := strings.Join(notes, "; ")
	if text != "" && f.said[id] != text {
		f.log.Warn("of a container not everything counts", "container", id, "notes", text)
		f.said[id] = text
	}
}
