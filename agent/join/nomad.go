package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// newNomad is a client for one question or two: the CA may have been rotated since the last.
func newNomad(address, token, caFile, cluster string) (*api.Client, error) {
	c := &api.Config{Address: address, SecretID: token, Region: cluster,
		HttpClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}, Timeout: 30 * time.Second}}
	if strings.HasPrefix(address, "https:") {
		c.TLSConfig = &api.TLSConfig{CACert: caFile, TLSServerName: "server." + cluster + ".nomad"}
		if _, err := os.Stat(caFile); err != nil {
			return nil, err
		}
		if err := api.ConfigureTLS(c.HttpClient, c.TLSConfig); err != nil {
			return nil, err
		}
	}
	return api.NewClient(c)
}

// introduce makes the token by which a client with this name and pool registers for the first time.
func introduce(ctx context.Context, c *api.Client, host, pool string) (string, error) {
	r, _, err := c.ACLIdentity().CreateClientIntroductionToken(&api.ACLIdentityClientIntroductionTokenRequest{
		TTL: introductionLife, NodeName: host, NodePool: pool}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("nomad: introduction of %s: %w", host, err)
	}
	return r.JWT, nil
}

// introductionLife is how long a host has from its enrolment to its first registration.
const introductionLife = 30 * time.Minute

// node finds the client of a host, or nil.
func node(ctx context.Context, c *api.Client, host string) (*api.NodeListStub, error) {
	all, _, err := c.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("nomad: %w", err)
	}
	for _, n := range all {
		if n.Name == host {
			return n, nil
		}
	}
	return nil, nil
}

// expel takes every client with the host's name out of Nomad.
func expel(ctx context.Context, c *api.Client, host string) error {
	nodes, _, err := c.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	var all []error
	for _, n := range nodes {
		if n.Name != host {
			continue
		}
		_, err := c.Nodes().ToggleEligibility(n.ID, false, (&api.WriteOptions{}).WithContext(ctx))
		all = append(all, err)
		_, _, err = c.Nodes().Purge(n.ID, (&api.QueryOptions{}).WithContext(ctx))
		all = append(all, err)
	}
	return errors.Join(all...)
}
