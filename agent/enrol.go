package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"plenum/agent/join"
	"plenum/agent/pki"
)

// Join makes this host a part of the cluster that the token is of, or goes on where an earlier run was killed. A host
// that has joined already is put right.
func (c *Command) Join(ctx context.Context, text string, set func(*Config)) error {
	w, lock, err := c.work()
	if err != nil {
		return err
	}
	defer lock.Close()
	set(&w.cfg)
	if err := errors.Join(w.cfg.validate(), w.choose()); err != nil {
		return err
	}
	start := time.Now()
	if w.joined() && text != "" {
		t, err := join.ParseToken(text)
		if err != nil {
			return err
		}
		if err := w.agrees(t); err != nil {
			return err
		}
	}
	if !w.joined() {
		if text == "" {
			return errors.New("no token is given: plenum join TOKEN (plenum token create on a server host makes one)")
		}
		t, err := join.ParseToken(text)
		if err != nil {
			return err
		}
		if err := c.provisional(ctx, w, t); err != nil || c.Plan {
			return err
		}
		c.obstacles(w)
		if err := c.enrol(ctx, w, t); err != nil {
			return err
		}
	} else if err := c.printPlan(ctx, w, w.view); err != nil || c.Plan {
		return err
	}
	w.fetch = w.fetchBinary
	if err := c.joinVault(ctx, w); err != nil {
		return err
	}
	packed := w.pack(ctx)
	n, err := w.converge(ctx)
	n += packed
	if err != nil {
		return err
	}
	if n == 0 {
		c.say("nothing to do: %s is %s in %s", w.answer.Host, strings.Join(w.answer.Roles, ", "), w.answer.Region)
		return nil
	}
	c.say("%s joined %s as %s in %s: control %s, media %s (%s)", w.answer.Host, w.answer.Cluster, strings.Join(w.answer.Roles, ", "),
		w.answer.Region, w.answer.Control.Addr(), w.answer.Media.Addr(), time.Since(start).Round(100*time.Millisecond))
	return nil
}

// agrees refuses a token that would make this host something else than it is.
func (w *work) agrees(t join.Token) error {
	a, roles := w.answer, slices.Clone(w.answer.Roles)
	slices.Sort(roles)
	slices.Sort(t.Roles)
	if t.Cluster == a.Cluster && bytes.Equal(t.Pin, a.Pin) && t.Region == a.Region && slices.Equal(roles, t.Roles) {
		return nil
	}
	return fmt.Errorf("this host is %s in %s of %s; the token is for %s in %s of %s: plenum leave first", strings.Join(roles, ", "), a.Region, a.Cluster,
		strings.Join(t.Roles, ", "), t.Region, t.Cluster)
}

// provisional prints the plan as far as the token tells it.
func (c *Command) provisional(ctx context.Context, w *work, t join.Token) error {
	v := w.view
	v.answer = join.Answer{Cluster: t.Cluster, Host: w.cfg.Host, Region: t.Region, Roles: t.Roles, Nomad: join.Nomad{Pool: join.Pool(t.Roles), Introduction: "later"},
		Consul: join.Consul{Token: "later"}, TLSCert: "later"}
	for _, name := range programsOf(t.Roles) {
		v.answer.Binaries = append(v.answer.Binaries, join.Binary{Name: name, Version: "of the cluster"})
	}
	return c.printPlan(ctx, w, v,
		Step{Kind: "key", What: "make four keys in " + keyDir, Why: "the private halves never leave this host"},
		Step{Kind: "call", What: "enrol at " + strings.Join(t.Addresses, " or "), Why: fmt.Sprintf("as %s in %s, with a token until %s", strings.Join(t.Roles, ", "), t.Region, t.Expires.Format(time.RFC3339))})
}

func programsOf(roles []string) []string {
	if slices.Contains(roles, join.RoleServer) {
		return programs
	}
	return slices.DeleteFunc(slices.Clone(programs), func(p string) bool { return p == "vault" })
}

// enrol trades the token for an answer, and keeps it.
func (c *Command) enrol(ctx context.Context, w *work, t join.Token) error {
	if err := w.host.Mkdir(stateDir, 0o755); err != nil {
		return err
	}
	w.crash("before keys")
	id, err := loadIdentity(w.host)
	if err != nil {
		return err
	}
	w.crash("after keys")
	client := join.NewClient(t, id.host, id.tls)
	client.Now = wallClock
	said := map[string]bool{} // once, however often it is tried
	client.Progress = func(step string) {
		if !said[step] {
			w.hand.say("%s", step)
		}
		said[step] = true
	}
	keys, err := id.public()
	if err != nil {
		return err
	}
	var a join.Answer
	if err := w.persist(ctx, "a join service that can let this host in", patience, func(ctx context.Context) (err error) {
		a, err = client.Enrol(ctx, t, join.Request{Host: w.cfg.Host, Keys: keys, Facts: w.factsFor(c.Release)})
		return err
	}); err != nil {
		return err
	}
	w.crash("after enrol")
	w.hand.say("enrolled: control %s, media %s, certificate until %s", a.Control, a.Media, a.CertificateTo.Format(time.RFC3339))
	return w.keep(a)
}

// persist asks again where servers are lost, or have no leader for a moment, while something goes on. What they refuse
// is refused.
func (w *work) persist(ctx context.Context, what string, limit time.Duration, ask func(context.Context) error) error {
	var refused error
	err := w.until(ctx, what, limit, func(ctx context.Context) error {
		err := ask(ctx)
		if err != nil && !join.Temporary(err) {
			refused, err = err, nil
		}
		return err
	})
	return errors.Join(refused, err)
}

// client is for the join services that the host knows.
func (w *work) client() (*join.Client, join.Request, error) {
	id, err := loadIdentity(w.host)
	if err != nil {
		return nil, join.Request{}, err
	}
	keys, err := id.public()
	if err != nil {
		return nil, join.Request{}, err
	}
	c := &join.Client{Pin: w.answer.Pin, Host: id.host, TLS: id.tls, Now: wallClock}
	for _, s := range w.answer.Servers {
		c.Addresses = append(c.Addresses, s.Join)
	}
	return c, join.Request{Host: w.answer.Host, Keys: keys}, nil
}

func (w *work) fetchBinary(ctx context.Context, b join.Binary, to string) error {
	c, _, err := w.client()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	return errors.Join(c.Binary(ctx, b, f), f.Close())
}

// renew asks for new certificates when a third of their life is over. Nothing else on the host waits for it.
func (l *loop) renew(ctx context.Context) error {
	w := l.work
	now := l.now()
	if now.Before(w.answer.RenewAfter) && !l.generation.outdated(ctx, w.answer, time.Now()) || time.Now().Before(l.notBefore) {
		return l.renewErr
	}
	c, r, err := w.client()
	if err != nil {
		return err
	}
	r.Facts = w.factsFor(l.o.Release)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	a, err := c.Renew(ctx, r)
	if err == nil {
		err = w.keep(a) // a full disk, for example
	}
	if err != nil {
		// Again soon while it matters, and never so often that a hundred hosts keep a service busy.
		l.notBefore = time.Now().Add(max(duration(w.cfg.Every), min(w.answer.CertificateTo.Sub(now)/20, 10*time.Minute)))
		l.metrics.renewals.WithLabelValues("failed").Inc()
		l.renewErr = fmt.Errorf("renewal: %w", err)
		return l.renewErr
	}
	l.renewErr = nil
	l.metrics.renewals.WithLabelValues("done").Inc()
	l.log.Info("renewed", "until", a.CertificateTo, "again", a.RenewAfter)
	return nil
}

// joinVault makes a new server's Vault a member of the others'. The keys that unseal it came with the answer.
func (c *Command) joinVault(ctx context.Context, w *work) error {
	s := w.answer.Secrets
	if s == nil || w.first || s.VaultToken == "" {
		return nil
	}
	k, err := pki.LoadKeys(w.pki().KeyFile)
	if err == nil && k.Credential != "" {
		return nil
	}
	if err := w.host.Mkdir(keyDir, 0o700); err != nil {
		return err
	}
	k = pki.Keys{Credential: s.VaultToken}
	if s.VaultUnseal != "" {
		k.Unseal = []string{s.VaultUnseal}
	}
	return k.Save(w.pki().KeyFile)
}

// pki is how Vault is found on this host.
func (w *work) pki() pki.Config {
	return pki.Config{Address: "http://" + vaultAddress, Cluster: w.answer.Cluster, Control: w.answer.Control.Masked(),
		KeyFile: w.host.Path(keyDir, "vault.json"), Audit: w.host.Path("var/log/plenum/vault-audit.log"),
		HostLife: duration(w.cfg.HostLife), ServerLife: duration(w.cfg.ServerLife)}
}
