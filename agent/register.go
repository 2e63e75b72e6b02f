package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"

	"plenum/agent/host"
	"plenum/agent/join"
)

// How often the agent says that it lives, and after how long of silence the catalog says that it does not. An agent
// that is restarted or upgraded in between never flaps.
const (
	beat    = 10 * time.Second
	silence = 45 * time.Second
)

// registration is the host's entry in the catalog. A name per host, for Consul's rights go by name.
func registration(cfg Config, f host.Facts, a join.Answer, release string) *consul.AgentServiceRegistration {
	meta := map[string]string{"region": a.Region, "release": release, "control_ip": a.Control.Addr().String(), "media_ip": a.Media.Addr().String(),
		"roles": strings.Join(a.Roles, ","), "cpus": strconv.Itoa(f.CPUs), "memory": strconv.FormatInt(f.Memory, 10),
		"metrics_port": strconv.Itoa(Metrics), "certificate_to": a.CertificateTo.UTC().Format(time.RFC3339)}
	public, families := cfg.Public, map[string]bool{}
	for _, address := range f.Addresses {
		family := "6"
		if address.Is4() {
			family = "4"
		}
		families[family] = true
		if len(public) == 0 {
			public = []string{address.String()}
		}
	}
	if len(public) > 0 {
		meta["public_ip"] = public[0]
	}
	if families["4"] && families["6"] {
		meta["families"] = "4,6"
	} else {
		for family := range maps.Keys(families) {
			meta["families"] = family
		}
	}
	if cfg.UplinkMbit > 0 {
		meta["uplink"] = strconv.FormatInt(int64(cfg.UplinkMbit)*1_000_000, 10)
	}
	name := serviceName(a.Host)
	return &consul.AgentServiceRegistration{ID: name, Name: name, Tags: []string{"plenum-agent", "region-" + a.Region, "release-" + release},
		Address: a.Control.Addr().String(), Port: Metrics, Meta: meta,
		Check: &consul.AgentServiceCheck{CheckID: name, Name: "the agent's own word", TTL: silence.String(), Status: consul.HealthPassing}}
}

func serviceName(host string) string { return "plenum-agent-" + host }

// register keeps the host's entry in the catalog. It never takes it out: a host that is silent is critical, and gone
// only when it leaves or is revoked, so no outage of the catalog empties it.
func (l *loop) register(ctx context.Context) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	written := ""
	for {
		var err error
		written, err = l.beat(ctx, *l.answer.Load(), written)
		next := tick.C
		if err != nil { // sooner than the next beat: Consul may have just begun
			l.log.Debug("register", "err", err)
			next = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
	}
}

// beat registers the host where its entry differs, and says that it lives.
func (l *loop) beat(ctx context.Context, a join.Answer, written string) (string, error) {
	c, err := consulClient(a.Consul.Token)
	if err != nil {
		return written, err
	}
	f := l.work.facts
	f.Refresh()
	r := registration(l.work.cfg, f, a, l.o.Release)
	q := (&consul.QueryOptions{}).WithContext(ctx)
	_, _, err = c.Agent().Service(r.ID, q)
	if now := fmt.Sprint(r.Tags, r.Meta, a.Consul.Token); err != nil || now != written {
		if err := c.Agent().ServiceRegisterOpts(r, consul.ServiceRegisterOpts{}.WithContext(ctx)); err != nil {
			return "", err
		}
		l.log.Info("registered", "service", r.Name)
		written = now
	}
	if err := c.Agent().UpdateTTLOpts(r.ID, "release "+l.o.Release, consul.HealthPassing, q); err != nil {
		return "", err
	}
	if err := l.hint(ctx, c, a, f); err != nil {
		return written, err
	}
	return written, l.work.host.Write(seenFile, nil, 0o644)
}

// seenFile is as old as what this host knows of the catalog: its servers answered then.
const seenFile = "/run/plenum/catalog.seen"

// hint tells where the host may be found on the underlay. Nobody trusts it.
func (l *loop) hint(ctx context.Context, c *consul.Client, a join.Answer, f host.Facts) error {
	var control, media []netip.AddrPort
	for _, address := range f.Addresses {
		control = append(control, netip.AddrPortFrom(address, 4242))
		media = append(media, netip.AddrPortFrom(address, 51820))
	}
	value := marshal(map[string][]netip.AddrPort{"control": control, "media": media})
	key := "plenum/endpoints/" + a.Host
	old, _, err := c.KV().Get(key, (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil || old != nil && string(old.Value) == string(value) {
		return err
	}
	_, err = c.KV().Put(&consul.KVPair{Key: key, Value: value}, (&consul.WriteOptions{}).WithContext(ctx))
	return err
}

// consulClient is one for the Consul of this host.
func consulClient(token string) (*consul.Client, error) {
	c := consul.DefaultConfig()
	c.Address, c.Token, c.TokenFile = consulAddress, token, ""
	c.Transport.DisableKeepAlives = true
	return consul.NewClient(c)
}
