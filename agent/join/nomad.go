package join

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
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

// Variables of Nomad. Shards read the verifiers; a host's bridge job alone reads its password.
const accountsVariable = "plenum/accounts"

func passwordVariable(host string) string { return "nomad/jobs/bridge-" + host }

// account makes the host's XMPP account where there is none: its name is the host's.
func account(ctx context.Context, c *api.Client, host string) error {
	q, w := (&api.QueryOptions{}).WithContext(ctx), (&api.WriteOptions{}).WithContext(ctx)
	for {
		all, _, err := c.Variables().Peek(accountsVariable, q)
		if err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
		if all == nil {
			all = api.NewVariable(accountsVariable)
		}
		if all.Items[host] != "" {
			return nil
		}
		password := rand.Text()
		v := api.NewVariable(passwordVariable(host))
		v.Items = api.VariableItems{"xmpp_user": host, "xmpp_password": password}
		if _, _, err := c.Variables().Update(v, w); err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
		if all.Items[host], err = verifiers(password); err != nil {
			return err
		}
		if done, err := putVariable(c, all, w); done || err != nil {
			return err
		}
	}
}

// closeAccount ends it. Sessions that are open end with the host's tunnels.
func closeAccount(ctx context.Context, c *api.Client, host string) error {
	q, w := (&api.QueryOptions{}).WithContext(ctx), (&api.WriteOptions{}).WithContext(ctx)
	if _, err := c.Variables().Delete(passwordVariable(host), w); err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	for {
		all, _, err := c.Variables().Peek(accountsVariable, q)
		if err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
		if all == nil || all.Items[host] == "" {
			return nil
		}
		if delete(all.Items, host); len(all.Items) == 0 {
			all.Items["-"] = "-" // Nomad keeps no empty one
		}
		if done, err := putVariable(c, all, w); done || err != nil {
			return err
		}
	}
}

// putVariable reports whether nobody else changed it in between.
func putVariable(c *api.Client, v *api.Variable, w *api.WriteOptions) (bool, error) {
	_, _, err := c.Variables().CheckedUpdate(v, w)
	var conflict api.ErrCASConflict
	if errors.As(err, &conflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("nomad: %w", err)
	}
	return true, nil
}

// verifiers are what RFC 5803 has for a password, SHA-1's and SHA-256's, one space between.
func verifiers(password string) (string, error) {
	var all []string
	for name, h := range map[string]func() hash.Hash{"SCRAM-SHA-1": sha1.New, "SCRAM-SHA-256": sha256.New} {
		salt := make([]byte, 16)
		_, _ = rand.Read(salt) // never fails
		salted, err := pbkdf2.Key(h, password, salt, 4096, h().Size())
		if err != nil {
			return "", err
		}
		mac := func(text string) []byte {
			m := hmac.New(h, salted)
			m.Write([]byte(text))
			return m.Sum(nil)
		}
		stored := h()
		stored.Write(mac("Client Key"))
		b64 := base64.StdEncoding.EncodeToString
		all = append(all, fmt.Sprintf("%s$4096:%s$%s:%s", name, b64(salt), b64(stored.Sum(nil)), b64(mac("Server Key"))))
	}
	return strings.Join(all, " "), nil
}
