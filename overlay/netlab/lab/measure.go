//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// measure says how long it takes from plenum shard add until a room is open there, and from plenum join until the new
// host's bridge carries a call.
func (c *cluster) measure() error {
	edge := c.in("muc", "edge")[0]
	client, err := edge.client()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := c.addShard("muc-2", "muc"); err != nil {
		return err
	}
	served := time.Since(began)
	var opened string
	for n := 0; opened == ""; n++ {
		room := fmt.Sprintf("first-%d", n)
		to, err := c.ask(client, edge.url(), http.MethodGet, "/config.js?room="+room, "")
		switch {
		case c.ctx.Err() != nil:
			return c.ctx.Err()
		case time.Since(began) > 2*time.Minute:
			return fmt.Errorf("the edge gives the new shard no room: %w", err)
		case err == nil && bytes.Contains(to, []byte(`"shard": "muc-2"`)):
			if _, err := c.ask(client, edge.url(), http.MethodPost, "/conference-request/v1?room="+room, fmt.Sprintf(`{"room": "%s@conference.%s"}`, room, domain)); err != nil {
				return err
			}
			opened = room
		}
	}
	c.say("shard add: serves after %.1f s, its first room is open after %.1f s", served.Seconds(), time.Since(began).Seconds())

	if err := c.add(site{name: "ham-1", region: "ham", roles: "bridge"}); err != nil {
		return err
	}
	m := c.members[len(c.members)-1]
	began = time.Now()
	if err := m.join(); err != nil {
		return err
	}
	joined := time.Since(began)
	if err := c.addBridge(m); err != nil {
		return err
	}
	all, err := c.catalogue("plenum-bridge")
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Node.Node != m.name {
			continue
		}
		if err := c.eventually(time.Minute, func() error {
			_, err := m.output("plenum", "probe", "--bridge", fmt.Sprintf("http://%s:%d", e.Service.Address, e.Service.Port))
			return err
		}); err != nil {
			return err
		}
		c.say("a host that joins: a member after %.1f s, its bridge carries a call after %.1f s", joined.Seconds(), time.Since(began).Seconds())
		return nil
	}
	return fmt.Errorf("no bridge of %s is in the catalogue", m.name)
}

// ask asks an edge by HTTPS.
func (c *cluster) ask(client *http.Client, edge, method, path, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(c.ctx, method, edge+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, res.Status, text)
	}
	return text, err
}
