package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/nomad/api"

	"plenum/agent"
	"plenum/agent/join"
	"plenum/jobs"
)

// cluster is the one that the host whose root is given is a server of, or the one that NOMAD_ADDR and its like name.
func cluster(root string) (*jobs.Cluster, error) {
	k := &jobs.Cluster{Release: version()}
	dir := filepath.Join(root, "var/lib/plenum")
	var shared struct {
		Name    string `json:"name"`
		Nomad   string `json:"nomad"`
		Control string `json:"control"`
	}
	text, err := os.ReadFile(filepath.Join(dir, "join/common.json"))
	c := api.DefaultConfig() // of the environment
	switch {
	case err == nil:
		if err := json.Unmarshal(text, &shared); err != nil {
			return nil, err
		}
		c.Address, c.SecretID, c.Region = "https://127.0.0.1:4646", shared.Nomad, shared.Name
		c.TLSConfig = &api.TLSConfig{CACert: filepath.Join(dir, "tls/ca.pem"), TLSServerName: "server." + shared.Name + ".nomad"}
		c.HttpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}}
		if err := api.ConfigureTLS(c.HttpClient, c.TLSConfig); err != nil {
			return nil, err
		}
		k.Control = shared.Control
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: jobs are for root on a server host", err)
	case os.Getenv("NOMAD_ADDR") == "":
		return nil, errors.New("this is no server host, and NOMAD_ADDR names no Nomad: run this on a host with the role server")
	}
	if k.Nomad, err = api.NewClient(c); err != nil {
		return nil, err
	}
	k.Hosts = func(ctx context.Context) ([]jobs.Host, error) {
		all, err := join.Admin{Socket: filepath.Join(root, "run/plenum/join.sock")}.Hosts(ctx)
		if err != nil && shared.Name == "" {
			return nodes(ctx, k.Nomad)
		}
		var hosts []jobs.Host
		for _, h := range all {
			if h.State == "member" {
				hosts = append(hosts, jobs.Host{Name: h.Host, Region: h.Region, Roles: h.Roles, Node: h.Node})
			}
		}
		return hosts, err
	}
	return k, nil
}

// carried is what jobs know of hosts, for plenum status.
func carried(ctx context.Context, root string) (map[string]agent.Load, error) {
	k, err := cluster(root)
	if err != nil {
		return nil, err
	}
	hosts, err := k.Carried(ctx)
	loads := map[string]agent.Load{}
	for name, h := range hosts {
		loads[name] = agent.Load(h)
	}
	return loads, err
}

// nodes takes Nomad's word for who the hosts are, of a Nomad that plenum did not set up: what they do is in their meta
// plenum_roles.
func nodes(ctx context.Context, c *api.Client) ([]jobs.Host, error) {
	list, _, err := c.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	var all []jobs.Host
	for _, n := range list {
		info, _, err := c.Nodes().Info(n.ID, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return nil, err
		}
		all = append(all, jobs.Host{Name: n.Name, Region: info.Meta["plenum_region"], Roles: strings.Split(info.Meta["plenum_roles"], ","), Node: n.ID})
	}
	return all, nil
}
