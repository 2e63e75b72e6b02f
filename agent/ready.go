package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"plenum/agent/host"
	"plenum/agent/join"
	"plenum/overlay"
)

// local is the client for what listens on loopback. It keeps no connections.
func local(h *host.Host) (*http.Client, error) {
	t := &http.Transport{DisableKeepAlives: true}
	if ca, err := h.Read(tlsDir + "/ca.pem"); err == nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s holds no certificate", h.Path(tlsDir+"/ca.pem"))
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, ServerName: "localhost"}
	}
	return &http.Client{Transport: t, Timeout: 5 * time.Second}, nil
}

// overlayUp is content when both planes are up and, on a host that is not alone, a server answers on control.
func overlayUp(ctx context.Context, root string, a join.Answer) error {
	s, err := overlay.Read(ctx, root)
	if err != nil {
		return errors.New("it has not started yet")
	}
	for _, p := range overlay.Planes {
		if !s.Planes[p].Up {
			return fmt.Errorf("the %s plane is not up: %s", p, strings.Join(s.Problems, "; "))
		}
	}
	others := 0
	for _, server := range a.Servers {
		if server.Host == a.Host {
			continue
		}
		others++
		for _, p := range s.Paths {
			if p.Plane == overlay.Control && p.Host == server.Host && p.Up {
				return nil
			}
		}
	}
	if others > 0 && !hasServer(a) {
		return fmt.Errorf("no server host answers on the control network; UDP 4242 has to reach one of %s", serverAddresses(a))
	}
	return nil
}

func hasServer(a join.Answer) bool {
	for _, s := range a.Servers {
		if s.Host == a.Host {
			return true
		}
	}
	return false
}

func serverAddresses(a join.Answer) string {
	var all []string
	for _, s := range a.Servers {
		all = append(all, s.Underlay...)
	}
	return strings.Join(all, ", ")
}

// vaultAnswers is content when Vault's API answers, sealed or not.
func vaultAnswers(ctx context.Context, c *http.Client) error {
	_, _, err := get(ctx, c, "http://"+vaultAddress+"/v1/sys/seal-status")
	return plain(err)
}

// consulLeader is content when this host's Consul knows a leader.
func consulLeader(ctx context.Context, c *http.Client) error {
	status, body, err := get(ctx, c, "http://"+consulAddress+"/v1/status/leader")
	if err != nil {
		return plain(err)
	}
	if status != http.StatusOK || !strings.Contains(string(body), ":") {
		return errors.New("it knows no leader yet")
	}
	return nil
}

// nomadLeader is content when this host's Nomad knows a leader that can sign identities.
func nomadLeader(ctx context.Context, c *http.Client) error {
	status, body, err := get(ctx, c, "https://"+nomadAddress+"/v1/status/leader")
	if err != nil {
		return plain(err)
	}
	if status != http.StatusOK || !strings.Contains(string(body), ":") {
		return errors.New("it knows no leader yet")
	}
	// A client that registers between the election and the first key is put off for half a minute.
	status, body, err = get(ctx, c, "https://"+nomadAddress+"/.well-known/jwks.json")
	if err != nil || status != http.StatusOK || !strings.Contains(string(body), `"kid"`) {
		return errors.New("it has no key yet")
	}
	return nil
}

// nomadReady is content when the servers say that this host's node is ready. The node's own secret is the right to ask.
// To ask is of use by itself: a node that hears from a server sends its first heartbeat at once, and otherwise after a
// while of up to ten seconds; and until then it is not ready.
func nomadReady(ctx context.Context, h *host.Host, c *http.Client) error {
	id, err := h.Read(stateDir + "/nomad/client/client-id")
	if err != nil {
		return errors.New("it has not started yet")
	}
	secret, err := h.Read(stateDir + "/nomad/client/secret-id")
	if err != nil {
		return errors.New("it has not started yet")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+nomadAddress+"/v1/node/"+string(id), nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Nomad-Token", string(secret))
	status, body, err := do(c, req)
	if err != nil {
		return plain(err)
	}
	var node struct{ Status string }
	if status != http.StatusOK || json.Unmarshal(body, &node) != nil {
		return errors.New("the node is not registered yet")
	}
	if node.Status != "ready" {
		return fmt.Errorf("the node is %s", node.Status)
	}
	return nil
}

// plain says what a failed dial of loopback means.
func plain(err error) error {
	if err == nil {
		return nil
	}
	if strings.Contains(err.Error(), "refused") {
		return errors.New("it has not started yet")
	}
	return err
}
