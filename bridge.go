package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"plenum/bridge"
)

// bridgeOptions are the flags of the media half; the help texts say what they mean.
type bridgeOptions struct {
	media, bridgeHTTP, bridgeWS string
	advertise                   []string
	uplink                      float64 // Mbit/s
}

var bridgeSettings = []setting{
	{"media", "bridge", "media"}, {"advertise", "bridge", "advertise"},
	{"bridge-http", "bridge", "http"}, {"bridge-ws", "bridge", "ws"}, {"uplink", "bridge", "uplink"},
}

func (o *bridgeOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.media, "media", "", "`ADDR:PORT` for media (default every address of this machine, port 10000)")
	f.StringArrayVar(&o.advertise, "advertise", nil, "`PUBLIC[:PORT]` that clients behind NAT reach the media port by; repeatable")
	f.Float64Var(&o.uplink, "uplink", 0, "`MBIT` per second that the bridge may send: near that it tells shards that it is full (default no limit)")
	f.StringVar(&o.bridgeHTTP, "bridge-http", "127.0.0.1:8080", "`ADDR` of the bridge's private HTTP")
	f.StringVar(&o.bridgeWS, "bridge-ws", "", "`ADDR` where the bridge takes the colibri WebSocket itself")
}

func (o *bridgeOptions) check() error {
	if !(o.uplink >= 0) || o.uplink > 1e6 {
		return fmt.Errorf("--uplink %v: want Mbit/s, for example 100; 0 is no limit", o.uplink)
	}
	for _, a := range o.advertise {
		if _, err := netip.ParseAddr(a); err == nil {
			continue
		}
		if _, err := netip.ParseAddrPort(a); err != nil {
			return fmt.Errorf("--advertise %s: want PUBLIC or PUBLIC:PORT, for example 203.0.113.9:10000", a)
		}
	}
	return checkAddresses(address{"media", o.media, "192.0.2.7:10000", true},
		address{"bridge-http", o.bridgeHTTP, "127.0.0.1:8080", false}, address{"bridge-ws", o.bridgeWS, "127.0.0.1:9090", true})
}

// A memberOptions is what a bridge needs to know that does not live in its shard's process.
type memberOptions struct {
	relayID, region string
	shardsFile      string
	domain, account string
	channelURL      string
}

var memberSettings = []setting{
	{"relay-id", "bridge", "relay_id"}, {"region", "bridge", "region"}, {"shards-file", "bridge", "shards_file"},
	{"domain", "bridge", "domain"}, {"account", "bridge", "account"}, {"bridge-ws-url", "bridge", "ws_url"},
	{"metrics", "bridge", "metrics"},
}

func (o *memberOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.relayID, "relay-id", "", "`ID` of this bridge, unique in the cluster (default: made up)")
	f.StringVar(&o.region, "region", "", "`REGION` of this bridge")
	f.StringVar(&o.shardsFile, "shards-file", "", "`FILE` that lists the shards to log in to; SIGHUP reads it again")
	f.StringVar(&o.domain, "domain", "localhost", "XMPP `DOMAIN` of the shards")
	f.StringVar(&o.account, "account", "", "`NAME:PASSWORD` to log in with")
	f.StringVar(&o.channelURL, "bridge-ws-url", "", "`URL` where clients reach the colibri WebSocket, as wss://meet.example (default: --bridge-ws)")
}

func (o *memberOptions) check() error {
	if o.shardsFile == "" {
		return errors.New("--shards-file FILE is missing: a bridge without shards serves nobody")
	}
	if name, password, ok := strings.Cut(o.account, ":"); !ok || name == "" || password == "" {
		return fmt.Errorf("--account %s: want NAME:PASSWORD, as the shards know it", name)
	}
	if u := o.channelURL; u != "" && !strings.HasPrefix(u, "ws://") && !strings.HasPrefix(u, "wss://") {
		return fmt.Errorf("--bridge-ws-url %s: want ws://HOST or wss://HOST", u)
	}
	return checkDomain(o.domain)
}

// shards reads whom to report to.
func (o *memberOptions) shards() ([]bridge.Shard, error) {
	list, err := readShards(o.shardsFile)
	if err != nil {
		return nil, err
	}
	user, password, _ := strings.Cut(o.account, ":")
	all := make([]bridge.Shard, len(list))
	for i, s := range list {
		all[i] = bridge.Shard{
			Addr: s.XMPP, Domain: "auth." + o.domain, User: user, Password: password,
			Brewery: "jvbbrewery@internal.auth." + o.domain, InsecureTLS: true, // the control overlay knows who is who
		}
	}
	return all, nil
}

func runBridgeCommand() *cobra.Command {
	var p processOptions
	var o bridgeOptions
	var m memberOptions
	c := &cobra.Command{
		Use:   "bridge",
		Short: "Run a media bridge",
		Long: `Run a media bridge for every shard of the list.

SIGHUP reads the list again: shards that stay do not notice. SIGUSR1 starts a drain: no new conferences, and
plenum_drain_stage tells when the last participant has left. SIGUSR2 takes it back. SIGQUIT drains, and stops then.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := configure(c.Flags(), p.config, slices.Concat(bridgeSettings, memberSettings, processSettings)); err != nil {
				return err
			}
			return runBridge(c.Context(), p, o, m, c.OutOrStdout())
		},
	}
	p.flags(c.Flags(), "127.0.0.1:9711")
	o.flags(c.Flags())
	m.flags(c.Flags())
	return c
}

func runBridge(ctx context.Context, p processOptions, o bridgeOptions, m memberOptions, out io.Writer) error {
	signals := hear()
	if err := cmp.Or(o.check(), m.check(), checkAddresses(address{"metrics", p.metrics, "127.0.0.1:9711", false})); err != nil {
		return err
	}
	log, err := newLogger(os.Stderr, p.logLevel, p.logFormat)
	if err != nil {
		return err
	}
	files := newWatch(m.shardsFile)
	shards, err := m.shards()
	if err != nil {
		return err
	}
	ops, err := newOperators(p.metrics)
	if err != nil {
		return err
	}
	defer ops.server.Close()
	b, err := bridge.New(bridge.Config{
		Media: o.media, Advertise: o.advertise, Uplink: uint64(o.uplink * 1e6), HTTP: o.bridgeHTTP, Channel: o.bridgeWS, ChannelURL: m.channelURL,
		RelayID: m.relayID, Region: m.region, Version: version(), Shards: shards,
		Metrics: ops.registry, Log: log,
	})
	if err != nil {
		return inUse(err, "bridge-http", o.bridgeHTTP, "bridge-ws", o.bridgeWS, "media", o.media)
	}
	if p.readyFile != "" {
		r := readyFile{Metrics: ops.url(), Domain: m.domain, Bridges: []readyBridge{readyOf(b)}}
		r.Media, r.BridgeHTTP = r.Bridges[0].Media, r.Bridges[0].BridgeHTTP
		if err := r.write(p.readyFile); err != nil {
			b.Close()
			return err
		}
		defer os.Remove(p.readyFile)
	}
	fmt.Fprintf(out, "bridge %s takes media on %s\n", b.ID(), b.MediaAddrs()[0])
	ops.heard = []string{"probe", "--bridge", readyOf(b).BridgeHTTP}

	ctx, stop := context.WithCancel(ctx) // a bridge may be told over HTTP to end
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer stop()
		return b.Run(ctx)
	})
	g.Go(func() error { return ops.serve(nil) })
	g.Go(func() error { frugal(ctx); return nil })
	reload := func() error {
		shards, err := m.shards()
		if err != nil {
			return err
		}
		return b.SetShards(shards)
	}
	g.Go(func() error { obey(ctx, signals, log, ops.registry, b, files, reload, stop); return nil })
	g.Go(func() error {
		<-ctx.Done()
		defer overdue(log).Stop()
		return ops.server.Close()
	})
	return g.Wait()
}

func readyOf(b *bridge.Bridge) readyBridge {
	return readyBridge{b.MediaAddrs()[0].String(), "http://" + b.HTTPAddr().String(), b.ID()}
}
