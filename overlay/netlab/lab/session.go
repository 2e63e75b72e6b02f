//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"strings"
	"time"
)

// room is where the lab's own call is; the links lead there as well.
const room = "hello"

// session is make lab: from nothing to a call by way of both regions, and two links for browsers.
func session(c *cluster, measured bool) error {
	edges := c.firsts("edge")
	var links []string
	authority := make(chan error, 1)
	go func() { authority <- c.ca.start() }()
	if err := errors.Join(c.begin(), <-authority); err != nil {
		return err
	}
	joined := time.Now()
	jobs := []func() error{
		c.serve,
		func() error { return c.addPrometheus(edges[len(edges)-1]) },
	}
	for _, m := range edges {
		jobs = append(jobs, func() error { return c.addTURN(m.region) })
	}
	if err := together(jobs...); err != nil {
		return err
	}
	c.say("everything serves, %.1f s after the last host joined", time.Since(joined).Seconds())

	for _, m := range edges {
		door, err := m.pageDoor()
		if err != nil {
			return err
		}
		links = append(links, fmt.Sprintf("http://localhost:%d", door.Port()))
	}
	var call string
	var prometheus netip.AddrPort
	if err := together(
		c.relays,
		func() (err error) { call, err = c.call(edges, links); return err },
		func() (err error) { prometheus, err = c.watched(edges[len(edges)-1]); return err },
	); err != nil {
		c.confess()
		return err
	}
	c.say("Prometheus sees every agent, overlay, server, shard, bridge and edge: http://%s/targets", prometheus)
	for _, kind := range []string{"shard", "bridge", "edge"} {
		text, err := c.first().output("plenum", kind, "list")
		if err != nil {
			return err
		}
		c.write("\n%s", text)
	}
	c.write("\n")
	summary := fmt.Sprintf("lab: %d hosts, %d regions: %s, %.0f s in all", len(c.members), len(edges), call, time.Since(c.start).Seconds())
	if measured {
		if err := c.measure(); err != nil {
			return err
		}
	}
	if os.Getenv("LAB_ONCE") != "" {
		return c.rest(summary)
	}
	c.say("%s", summary)
	ways := "One room"
	for i, m := range edges {
		ways += fmt.Sprintf(", link %d by the edge in %s", i+1, m.region)
		links[i] += "/" + room
	}
	return c.rest(ways+":\n"+strings.Join(links, "\n"),
		"plenum shard add muc-2 --region muc", "plenum shard drain muc-1", "plenum bridge list", "plenum room trace "+room, "nomad job status")
}

// firsts are the first hosts with a role, one of each region.
func (c *cluster) firsts(role string) (all []*member) {
	for _, region := range c.regions() {
		if there := c.in(region, role); len(there) > 0 {
			all = append(all, there[0])
		}
	}
	return all
}

// call has two people talk, each by way of another region's edge: by the doors for browsers, and then in real browsers, if
// there are any here, with names and TLS. One more joins by the first link. It says how that went.
func (c *cluster) call(edges []*member, links []string) (string, error) {
	out, err := c.probe(links...)
	if err != nil {
		return "", err
	}
	c.say("%s", out)
	browser, end, err := c.browse(edges)
	if errors.Is(err, errNoBrowser) {
		return fmt.Sprintf("two people hear each other; %v", err), nil
	}
	if err != nil {
		return "", err
	}
	defer end()
	began := time.Now()
	var pages []*page
	join := func(region, url string) error {
		p, err := open(browser, region, url+"/"+room)
		if err != nil {
			return err
		}
		pages = append(pages, p)
		if len(pages) == 1 {
			return nil
		}
		for _, p := range pages {
			if err := c.eventually(time.Minute, p.flows); err != nil {
				return err
			}
		}
		return nil
	}
	for _, m := range edges {
		if err := join(m.region, m.url()); err != nil {
			return "", err
		}
	}
	took := time.Since(began)
	where, err := c.traced(room)
	if err != nil {
		return "", err
	}
	m, err := pages[0].gets()
	if err != nil {
		return "", err
	}
	if m.Protocol != "h2" || !strings.HasPrefix(m.Socket, "wss:") {
		return "", fmt.Errorf("a page came by %s and has its socket at %s", m.Protocol, m.Socket)
	}
	return fmt.Sprintf("two browsers see and hear each other after %.1f s (TLS, %s, %s)", took.Seconds(), m.Protocol, where), join(edges[0].region, links[0])
}

// traced says on which bridges people of which regions are. There must be some of each region; bridges of their own they
// have unless the machine is too busy for that, for then all bridges are.
func (c *cluster) traced(room string) (string, error) {
	args := []string{"room", "trace", room, "-o", "json"}
	for _, kind := range []string{"shard", "bridge"} {
		text, err := c.first().output("plenum", kind, "list", "-o", "json")
		if err != nil {
			return "", err
		}
		var all []struct{ URL, Metrics string }
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return "", err
		}
		for _, i := range all {
			if kind == "shard" {
				args = append(args, "--from", strings.TrimSuffix(i.Metrics, "/metrics"))
			} else {
				args = append(args, "--from", i.URL)
			}
		}
	}
	text, err := c.first().output("plenum", args...)
	if err != nil {
		return "", err
	}
	var view struct {
		Shards []struct {
			Focus struct {
				Participants []struct{ Region, Bridge string }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &view); err != nil {
		return "", err
	}
	var where []string
	regions := map[string]bool{}
	for _, s := range view.Shards {
		for _, p := range s.Focus.Participants {
			where = append(where, p.Region+" on "+path.Base(p.Bridge)) // a JID, by its resource
			regions[p.Region] = true
		}
	}
	if len(regions) < len(c.regions()) {
		return "", fmt.Errorf("plenum room trace %s: people are of %d regions: %s", room, len(regions), text)
	}
	return strings.Join(where, ", "), nil
}
