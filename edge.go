package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"plenum/signaling/edge"
)

// edgeOptions are the flags of an edge; the help texts say what they mean.
type edgeOptions struct {
	proxy         edge.Proxy
	domain        string
	consul, state string
	capacity      int
	ramp          time.Duration
	acme, email   string
	secret        string
}

var edgeSettings = []setting{
	{"region", "edge", "region"}, {"domain", "edge", "domain"}, {"http", "edge", "http"}, {"https", "edge", "https"},
	{"dir", "edge", "dir"}, {"overlay", "edge", "overlays"}, {"offload", "edge", "offload"}, {"answer", "edge", "answer"},
	{"consul", "edge", "consul"}, {"state", "edge", "state"}, {"sockets", "edge", "sockets"}, {"capacity", "edge", "capacity"},
	{"ramp", "edge", "ramp"}, {"name", "edge", "names"}, {"acme", "edge", "acme"}, {"email", "edge", "email"}, {"secret", "edge", "secret"},
	{"haproxy-metrics", "edge", "haproxy_metrics"}, {"metrics", "edge", "metrics"}, {"turn", "edge", "turn"}, {"turn-server", "edge", "turn_server"},
}

func (o *edgeOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.proxy.Region, "region", "", "`REGION` of this edge")
	f.StringVar(&o.domain, "domain", "localhost", "XMPP `DOMAIN` of the shards")
	f.StringVar(&o.proxy.Dir, "dir", "/run/plenum/edge", "folder `DIR` of HAProxy's files")
	f.StringVar(&o.proxy.HTTP, "http", ":80", "`ADDR` where HAProxy takes plain HTTP")
	f.StringVar(&o.proxy.HTTPS, "https", ":443", "`ADDR` where HAProxy takes HTTPS; empty serves everything by plain HTTP")
	f.StringArrayVar(&o.proxy.Names, "name", nil, "DNS `NAME` that a certificate is for; repeatable")
	f.StringVar(&o.acme, "acme", "letsencrypt", "`URL` of the certificate authority's directory (ACME); empty shows NAME.pem in --dir")
	f.StringVar(&o.email, "email", "", "`ADDRESS` that the authority may write to")
	f.StringVar(&o.secret, "secret", "", "`SECRET` under which edges share certificates in Consul: the same for all of them")
	f.StringArrayVar(&o.proxy.Overlay, "overlay", nil, "`PREFIX` of the overlays, whose hosts may be edges before this one; repeatable")
	f.StringVar(&o.proxy.Offload, "offload", "127.0.0.1:9715", "`ADDR` where HAProxy asks this process for places")
	f.StringVar(&o.proxy.Answer, "answer", "127.0.0.1:9716", "`ADDR` where this process answers challenges of certificate authorities")
	f.StringVar(&o.consul, "consul", "http://127.0.0.1:8500", "`URL` of the Consul agent")
	f.StringVar(&o.state, "state", "", "`FILE` with the last view of the cluster, for when the catalogue is gone")
	f.IntVar(&o.proxy.Sockets, "sockets", 0, "requests of one address in ten seconds before it is told to come later (default 3000)")
	f.IntVar(&o.capacity, "capacity", 0, "participants that a shard is made for (default 10000)")
	f.DurationVar(&o.ramp, "ramp", 0, "how long a new shard takes to its full share of new rooms (default 1m)")
	f.StringVar(&o.proxy.TURN, "turn", "", "DNS `NAME` under which --https takes TURN over TLS as well; it gets a certificate")
	f.StringVar(&o.proxy.Relay, "turn-server", "127.0.0.1:3479", "`ADDR` of the TURN server for --turn, by TCP without TLS")
	f.StringVar(&o.proxy.Metrics, "haproxy-metrics", "", "`ADDR` of HAProxy's own metrics")
}

func (o *edgeOptions) check() error {
	if o.proxy.Region == "" {
		return errors.New("--region REGION is missing: shards are told where a socket came in")
	}
	if o.proxy.HTTPS != "" && o.acme != "" && o.secret == "" {
		return errors.New("--secret SECRET is missing: edges share certificates under it; or give --acme '' and NAME.pem in --dir")
	}
	if o.proxy.TURN != "" && !slices.Contains(o.proxy.Names, o.proxy.TURN) {
		o.proxy.Names = append(o.proxy.Names, o.proxy.TURN)
	}
	return cmp.Or(checkDomain(o.domain), checkAddresses(
		address{"turn-server", o.proxy.Relay, "127.0.0.1:3479", o.proxy.TURN == ""},
		address{"http", o.proxy.HTTP, ":80", false}, address{"https", o.proxy.HTTPS, ":443", true},
		address{"offload", o.proxy.Offload, "127.0.0.1:9715", false}, address{"answer", o.proxy.Answer, "127.0.0.1:9716", false},
		address{"haproxy-metrics", o.proxy.Metrics, "127.0.0.1:9717", true}))
}

// authority is where certificates come from; nil: from files.
func (o *edgeOptions) authority(consul *api.Client) *edge.Authority {
	if o.proxy.HTTPS == "" || o.acme == "" {
		return nil
	}
	a := &edge.Authority{Directory: o.acme, Email: o.email, Secret: o.secret, Consul: consul}
	if o.acme == "letsencrypt" {
		a.Directory = ""
	}
	return a
}

func runEdgeCommand() *cobra.Command {
	var p processOptions
	var o edgeOptions
	c := &cobra.Command{
		Use:   "edge",
		Short: "Feed a region's HAProxy",
		Long: `Write HAProxy's configuration, and tell the HAProxy that runs with it which shards and bridges there are, where a
room's sockets go, and who is banned. HAProxy is never reloaded, and goes on when this process stops.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := configure(c.Flags(), p.config, slices.Concat(edgeSettings, processSettings)); err != nil {
				return err
			}
			return runEdge(c.Context(), p, o, c.OutOrStdout())
		},
	}
	p.flags(c.Flags(), "127.0.0.1:9714")
	o.flags(c.Flags())
	return c
}

func runEdge(ctx context.Context, p processOptions, o edgeOptions, out io.Writer) error {
	if err := cmp.Or(o.check(), checkAddresses(address{"metrics", p.metrics, "127.0.0.1:9714", false})); err != nil {
		return err
	}
	log, err := newLogger(os.Stderr, p.logLevel, p.logFormat)
	if err != nil {
		return err
	}
	ops, err := newOperators(p.metrics)
	if err != nil {
		return err
	}
	defer ops.server.Close()
	if err := os.MkdirAll(o.proxy.Dir, 0o700); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	consul, err := api.NewClient(&api.Config{Address: o.consul, Token: os.Getenv("CONSUL_HTTP_TOKEN")})
	if err != nil {
		return fmt.Errorf("--consul %s: %w", o.consul, err)
	}
	e, err := edge.New(edge.Config{
		Proxy: o.proxy, Catalog: &edge.Consul{Client: consul, Log: log}, Domain: o.domain, State: o.state, Authority: o.authority(consul),
		Capacity: o.capacity, Ramp: o.ramp, Metrics: ops.registry, Log: log,
	})
	if err != nil {
		return inUse(err, "offload", o.proxy.Offload)
	}
	if p.readyFile != "" {
		if err := (readyFile{Metrics: ops.url(), Domain: o.domain}).write(p.readyFile); err != nil {
			return errors.Join(err, e.Close())
		}
		defer os.Remove(p.readyFile)
	}
	fmt.Fprintf(out, "haproxy -f %s\n", o.proxy.Path("haproxy.cfg"))

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { frugal(ctx); return nil })
	g.Go(func() error { return e.Run(ctx) })
	g.Go(func() error { return ops.serve(nil) })
	g.Go(func() error {
		<-ctx.Done()
		defer overdue(log).Stop()
		return ops.server.Close()
	})
	return g.Wait()
}
