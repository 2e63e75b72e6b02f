package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"plenum/agent/host"
	"plenum/agent/join"
	"plenum/agent/pki"
)

// A work is one host while somebody works on it: a command, or the loop.
type work struct {
	hand
	view
	vault   *pki.Vault // on server hosts
	release string     // of this binary, told to the join service
	shares  []string   // of Vault's key, while init runs and people will have them
}

// patience is how long each part may take to be ready.
const patience = 2 * time.Minute

// newWork gathers what is known of the host below root.
func newWork(root string) (*work, error) {
	h, err := host.Open(root)
	if err != nil {
		return nil, err
	}
	cfg, err := LoadConfig(root)
	if err != nil {
		return nil, err
	}
	w := &work{hand: hand{host: h, say: func(string, ...any) {}, crash: crashHook}}
	w.view = view{cfg: cfg, path: func(p string) string { return h.Path(p) }}
	if w.facts, err = h.Facts(); err != nil {
		return nil, err
	}
	return w, w.reload()
}

// reload reads the answer again.
func (w *work) reload() error {
	a, ok, err := loadAnswer(w.host)
	if err != nil {
		return err
	}
	_, err = w.host.Read(foundingFile)
	w.first = err == nil
	if ok {
		w.answer = a
	}
	return nil
}

// joined reports whether the host is part of a cluster.
func (w *work) joined() bool { return w.answer.NebulaCert != "" }

// keep makes a the host's answer, on disk first. What the service tells once stays.
func (w *work) keep(a join.Answer) error {
	old := w.answer
	if a.Nomad.Introduction == "" {
		a.Nomad.Introduction = old.Nomad.Introduction
	}
	if a.Consul.Token == "" {
		a.Consul.Token = old.Consul.Token
	}
	if a.Nomad.ConsulToken == "" {
		a.Nomad.ConsulToken = old.Nomad.ConsulToken
	}
	if a.Secrets == nil {
		a.Secrets = old.Secrets
	}
	if len(a.Binaries) == 0 {
		a.Binaries = old.Binaries
	}
	if err := saveAnswer(w.host, a); err != nil {
		return err
	}
	w.answer = a
	return nil
}

// converge makes the host what it should be, service by service, and waits for each to be ready before the next.
// It returns how many steps it took.
func (w *work) converge(ctx context.Context, services ...string) (int, error) {
	total := 0
	d := w.desired()
	for i, s := range d.Services {
		if len(services) > 0 && !slices.Contains(services, s.Name) {
			continue
		}
		part := d
		part.Services = d.Services[i : i+1]
		n, err := w.apply(ctx, part)
		total += n
		if err == nil {
			err = w.await(ctx, s.Name)
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// await waits until a service does what it is there for.
func (w *work) await(ctx context.Context, service string) error {
	c, err := local(w.host)
	if err != nil {
		return err
	}
	var ready func(context.Context) error
	name := describe(service)
	switch service {
	case "plenum-overlay":
		name = "the encrypted networks"
		ready = func(ctx context.Context) error { return overlayUp(ctx, w.host.Root(), w.answer) }
	case "plenum-vault":
		ready = func(ctx context.Context) error {
			if err := vaultAnswers(ctx, c); err != nil {
				return err
			}
			return w.unseal(ctx)
		}
	case "plenum-consul":
		name = "Consul to find a leader"
		var e estranged // the key may have changed while this host joined
		ready = func(ctx context.Context) error {
			err := consulLeader(ctx, c)
			if e.due(err == nil, time.Now()) && len(w.others()) > 0 {
				_ = w.rekey(ctx)
			}
			return err
		}
	case "plenum-nomad":
		name = "Nomad"
		ready = func(ctx context.Context) error {
			if w.is(join.RoleServer) {
				if err := nomadLeader(ctx, c); err != nil {
					return err
				}
			}
			if w.answer.Nomad.Introduction == "" || w.first { // init waits for that last of all
				return nil
			}
			return nomadReady(ctx, w.host, c)
		}
	case "plenum-agent":
		name = "the agent"
		ready = func(ctx context.Context) error { return agentAnswers(ctx, c, w.answer) }
	default:
		return nil
	}
	return w.until(ctx, name, patience, func(ctx context.Context) error {
		// One that ended meanwhile, for an address was not there yet or a signal came too early, is started again.
		if s, err := w.host.Services().State(ctx, service); err == nil && !s.Running {
			if _, err := w.apply(ctx, w.desired().only(service)); err != nil {
				return err
			}
		}
		return ready(ctx)
	})
}

// startUnit starts a service, or starts it anew.
func (w *work) startUnit(ctx context.Context, name string) error {
	for _, u := range w.units() {
		if u.Name == name {
			return w.host.Services().Start(ctx, u)
		}
	}
	return nil
}

// agentAnswers is content when the agent serves its metrics on the control plane.
func agentAnswers(ctx context.Context, c *http.Client, a join.Answer) error {
	status, _, err := get(ctx, c, fmt.Sprintf("http://%s:%d/healthz", a.Control.Addr(), Metrics))
	if err == nil && status != http.StatusOK {
		err = errors.New("it is not ready")
	}
	return plain(err)
}

// unseal opens Vault with the key on this host; a Vault that people unseal, or that was never set up, is left alone.
func (w *work) unseal(ctx context.Context) error {
	if w.vault == nil {
		v, err := pki.New(w.pki())
		if err != nil {
			return err
		}
		w.vault = v
	}
	st, err := w.vault.Status(ctx)
	if err != nil || !st.Initialized || !st.Sealed {
		return err
	}
	if len(w.shares) > 0 {
		return w.vault.Unseal(ctx, w.shares...)
	}
	keys, err := pki.LoadKeys(w.pki().KeyFile)
	if err != nil || len(keys.Unseal) == 0 {
		return nil // a new server's Vault, or people hold the shares
	}
	return w.vault.Unseal(ctx)
}
