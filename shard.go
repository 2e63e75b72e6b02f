package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"plenum/signaling"
	"plenum/signaling/handover"
	"plenum/signaling/rooms"
	"plenum/signaling/web"
	"plenum/wire/jid"
)

// shardOptions are the flags of the signaling half; the help texts say what they mean.
type shardOptions struct {
	http, xmpp, domain string
	tls                bool
	accounts           []string
	web                string
	configJS           object
	resumeKey          string
	maxAudio, maxVideo int

	hibernation time.Duration // for tests: how long a lost session is kept; 0 is the default
}

var shardSettings = []setting{
	{"http", "signaling", "http"}, {"xmpp", "signaling", "xmpp"}, {"domain", "signaling", "domain"}, {"tls", "signaling", "tls"},
	{"account", "signaling", "account"}, {"web", "signaling", "web"}, {"config-js", "signaling", "config_js"},
	{"resume-key", "signaling", "resume_key"},
	{"max-audio-senders", "signaling", "max_audio_senders"}, {"max-video-senders", "signaling", "max_video_senders"},
}

func (o *shardOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.http, "http", "127.0.0.1:8000", "`ADDR` of the web client and of XMPP over WebSocket; port 0 picks one")
	f.BoolVar(&o.tls, "tls", false, "serve HTTPS with a self-signed certificate, so that other machines can join")
	f.StringVar(&o.xmpp, "xmpp", "127.0.0.1:5222", "`ADDR` of XMPP over TCP, for bridges, Jicofo and Jibri")
	f.StringVar(&o.domain, "domain", "localhost", "XMPP `DOMAIN`; rooms are at conference.DOMAIN")
	f.StringArrayVar(&o.accounts, "account", nil, "`NAME:PASSWORD` that may log in over TCP; repeatable")
	f.StringVar(&o.web, "web", "", "folder `DIR` with an unpacked build of Jitsi Meet's web application, to serve in place of the built-in client")
	f.Var(&o.configJS, "config-js", "`OBJECT` laid over config.js, deeper values over deeper ones")
	f.IntVar(&o.maxAudio, "max-audio-senders", 0, "how many in a room may send sound at a time; 0 is no limit")
	f.IntVar(&o.maxVideo, "max-video-senders", 0, "how many pictures a room may have at a time; 0 is no limit")
	f.StringVar(&o.resumeKey, "resume-key", "", "`SECRET` with which clients go on by themselves after a restart with the same one")
}

// check rejects what no shard could use, before anything is started.
func (o *shardOptions) check() error {
	if err := checkAddresses(address{"http", o.http, "127.0.0.1:8000", false}, address{"xmpp", o.xmpp, "127.0.0.1:5222", false}); err != nil {
		return err
	}
	for _, a := range o.accounts {
		if name, password, ok := strings.Cut(a, ":"); !ok || name == "" || password == "" {
			return fmt.Errorf("--account %s: want NAME:PASSWORD", name)
		}
	}
	if o.web != "" {
		if _, err := os.Stat(filepath.Join(o.web, "index.html")); err != nil {
			return fmt.Errorf("--web %s: there is no index.html; want the folder of an unpacked build of Jitsi Meet's web application", o.web)
		}
	}
	if o.maxAudio < 0 || o.maxVideo < 0 {
		return fmt.Errorf("--max-audio-senders %d, --max-video-senders %d: want numbers from 0, which is no limit", o.maxAudio, o.maxVideo)
	}
	return checkDomain(o.domain)
}

func checkDomain(domain string) error {
	if _, err := jid.New("", domain, ""); err != nil {
		return fmt.Errorf("--domain %s: %w", domain, err)
	}
	return nil
}

// room is what the flags say as the room's configuration.
func (o *shardOptions) room() (signaling.Config, error) {
	c := signaling.Config{
		Domain: o.domain, HTTP: o.http, XMPP: o.xmpp, Accounts: o.accounts,
		Web: web.Handler(), Site: o.web, ConfigJS: o.configJS,
	}
	c.Sessions.Hibernation = o.hibernation
	c.Sessions.ResumeKey = []byte(o.resumeKey)
	c.Focus.MaxAudioSenders, c.Focus.MaxVideoSenders = o.maxAudio, o.maxVideo
	if o.tls {
		certificate, err := selfSigned(time.Now())
		if err != nil {
			return c, err
		}
		c.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	}
	return c, nil
}

// shardURL is where a browser finds the shard. A wildcard address is told as one that others can reach.
func shardURL(s *signaling.Server, secure bool) string {
	scheme := "http"
	if secure {
		scheme = "https"
	}
	return scheme + "://" + reachable(s.HTTPAddr().String())
}

func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err == nil && net.ParseIP(host).IsUnspecified() {
		return net.JoinHostPort(outwardAddress(), port)
	}
	return address
}

// webSocketURL is the same for WebSockets, without a path.
func webSocketURL(http string) string { return strings.Replace(http, "http", "ws", 1) }

// A cluster is what a shard needs to know when there are others.
type clusterOptions struct {
	shard, region string
	near          []string
	shardsFile    string
	accountsFile  string
	edges         []string
	consul        string
	servers       []string
	lease         time.Duration
	roomKey       string
	state         string
	address       string
	turnServers   []string
	turnSecret    string
	turnFile      string
}

var clusterSettings = []setting{
	{"shard", "signaling", "shard"}, {"region", "signaling", "region"}, {"near", "signaling", "near"}, {"shards-file", "signaling", "shards_file"},
	{"accounts-file", "signaling", "accounts_file"}, {"edge", "signaling", "edges"}, {"consul", "signaling", "consul"}, {"consul-server", "signaling", "consul_servers"},
	{"lease", "signaling", "lease"}, {"room-key", "signaling", "room_key"}, {"state", "signaling", "state"},
	{"handover", "signaling", "handover"}, {"metrics", "signaling", "metrics"},
	{"turn-server", "signaling", "turn_servers"}, {"turn-secret", "signaling", "turn_secret"},
	{"turn-file", "signaling", "turn_file"},
}

func (o *clusterOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.shard, "shard", "", "`NAME` of this shard, unique in the cluster")
	f.StringVar(&o.region, "region", "", "`REGION` of this shard")
	f.StringArrayVar(&o.near, "near", nil, "`REGION,REGION,…` near each other: bridges there come next; repeatable")
	f.StringVar(&o.shardsFile, "shards-file", "", "`FILE` that lists the cluster's shards; SIGHUP reads it again")
	f.StringVar(&o.accountsFile, "accounts-file", "", "`FILE` of more accounts, a NAME and its SCRAM verifiers (RFC 5803) a line; SIGHUP reads it again")
	f.StringArrayVar(&o.edges, "edge", nil, "`PREFIX` of edges' and shards' addresses, whose X-Proxy-Region and X-Forwarded-For are believed; repeatable")
	f.StringVar(&o.consul, "consul", "", "`URL` of the Consul agent that keeps who owns a room (default: this shard owns every room)")
	f.StringArrayVar(&o.servers, "consul-server", nil, "`URL` of a Consul server, asked whether there is a leader when the agent fails; repeatable (default: the agent)")
	f.DurationVar(&o.lease, "lease", 5*time.Second, "how long this shard owns its rooms without hearing from Consul")
	f.StringVar(&o.roomKey, "room-key", "", "`SECRET` of the cluster, under which Consul's keys hide room names")
	f.StringVar(&o.state, "state", "", "`FILE` that lets a shard that was restarted keep its rooms")
	f.StringArrayVar(&o.turnServers, "turn-server", nil, "`ADDR:PORT` of a TURN server that clients are told of; repeatable")
	f.StringVar(&o.turnSecret, "turn-secret", "", "`SECRET` from which TURN servers' users are made")
	f.StringVar(&o.turnFile, "turn-file", "", "`FILE` of more TURN servers, an ADDR, its port and its secret a line, and tls for one behind an edge; SIGHUP reads it again")
	f.StringVar(&o.address, "handover", "", "`ADDR` where other shards reach --http (default: the same)")
}

func (o *clusterOptions) check() error {
	if o.consul != "" {
		switch {
		case o.shard == "":
			return errors.New("--consul needs --shard NAME: what other shards know this one by")
		case o.roomKey == "":
			return errors.New("--consul needs --room-key SECRET: the same for all shards of the cluster")
		}
	}
	for _, server := range o.turnServers {
		if err := checkAddress(server); err != nil {
			return fmt.Errorf("--turn-server %s: want ADDR:PORT, for example turn.meet.example:3478: %w", server, err)
		}
	}
	if len(o.turnServers) > 0 && o.turnSecret == "" {
		return errors.New("--turn-server needs --turn-secret SECRET: the one of the servers")
	}
	for _, e := range o.edges {
		if _, err := parsePrefix(e); err != nil {
			return fmt.Errorf("--edge %s: want a prefix such as 10.77.0.0/16, or an address", e)
		}
	}
	return checkAddresses(address{"handover", o.address, "10.77.0.3:8000", true})
}

// services are the TURN servers, each by UDP and by TCP: those of the flags, and those of the file as it is now.
func (o *clusterOptions) services() (all []signaling.Service, err error) {
	add := func(host, port, secret string) {
		for _, transport := range []string{"udp", "tcp"} {
			all = append(all, signaling.Service{Type: "turn", Host: host, Port: port, Transport: transport, Secret: secret})
		}
	}
	for _, server := range o.turnServers {
		host, port, _ := net.SplitHostPort(server)
		add(host, port, o.turnSecret)
	}
	if o.turnFile == "" {
		return all, nil
	}
	text, err := os.ReadFile(o.turnFile)
	if err != nil {
		return nil, fmt.Errorf("--turn-file: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch {
		case len(f) == 3:
			add(f[0], f[1], f[2])
		case len(f) == 4 && f[3] == "tls": // a name for all servers of the region
			s := signaling.Service{Type: "turns", Host: f[0], Port: f[1], Transport: "tcp", Secret: f[2]}
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		default:
			return nil, fmt.Errorf("--turn-file %s: line %d: want ADDR PORT SECRET, or NAME PORT SECRET tls", o.turnFile, n)
		}
	}
	return all, nil
}

func (o *clusterOptions) prefixes() (all []netip.Prefix) {
	for _, e := range o.edges {
		p, _ := parsePrefix(e) // checked
		all = append(all, p)
	}
	return all
}

// parsePrefix reads a prefix, or an address as the prefix of it alone.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func runSignalingCommand() *cobra.Command {
	var p processOptions
	var s shardOptions
	var k clusterOptions
	c := &cobra.Command{
		Use:   "signaling",
		Short: "Run a signaling shard",
		Long: `Run a signaling shard: the web client, XMPP, the rooms and their focus. Bridges log in to it.

SIGHUP reads the list of shards, the accounts' file and that of TURN servers again. SIGUSR1 starts a drain: rooms are given to other shards one by one;
plenum_drain_stage tells when it is over. SIGUSR2 takes it back. SIGQUIT drains, and stops then.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := configure(c.Flags(), p.config, slices.Concat(shardSettings, clusterSettings, processSettings)); err != nil {
				return err
			}
			return runSignaling(c.Context(), p, s, k, c.OutOrStdout())
		},
	}
	p.flags(c.Flags(), "127.0.0.1:9712")
	s.flags(c.Flags())
	k.flags(c.Flags())
	return c
}

func runSignaling(ctx context.Context, p processOptions, o shardOptions, k clusterOptions, out io.Writer) error {
	signals := hear()
	if err := cmp.Or(o.check(), k.check(), checkAddresses(address{"metrics", p.metrics, "127.0.0.1:9712", false})); err != nil {
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
	config, err := o.room()
	if err != nil {
		return err
	}
	config.Shard, config.Region, config.Release, config.Edges = k.shard, k.region, version(), k.prefixes()
	for _, group := range k.near {
		config.Near = append(config.Near, strings.Split(group, ","))
	}
	if config.Services, err = k.services(); err != nil {
		return err
	}
	config.Metrics, config.Log = ops.registry, log

	shards := handover.NewShards(k.shard)
	files := newWatch(k.shardsFile, k.accountsFile, k.turnFile)
	list := func() error {
		if k.shardsFile == "" {
			return nil
		}
		list, err := readShards(k.shardsFile)
		if err == nil {
			shards.Set(list)
		}
		return err
	}
	if err := list(); err != nil {
		return err
	}
	var owner *rooms.Consul
	if k.consul != "" {
		// Others must know where this shard is before it owns anything, so it listens first.
		l, err := net.Listen("tcp", o.http)
		if err != nil {
			return inUse(err, "http", o.http)
		}
		config.Listener = l
		self := rooms.Shard{Name: k.shard, Addr: k.address}
		if self.Addr == "" {
			self.Addr = reachable(l.Addr().String())
		}
		owner, err = rooms.NewConsul(ctx, rooms.ConsulConfig{
			Agent: k.consul, Servers: k.servers, Self: self, Key: []byte(k.roomKey), TTL: k.lease, State: k.state,
			Home: shards.Home, Wanted: shards.Wanted, Metrics: ops.registry, Log: log,
		})
		if err != nil {
			l.Close()
			return err
		}
		config.Owner, config.Handover = owner, handover.New(handover.Config{Self: self, Owners: owner, Metrics: ops.registry, Log: log})
		config.Sessions.Gate, config.Health = owner.Alive, owner.Health
	}
	shard, err := signaling.New(config)
	if err != nil {
		return inUse(err, "http", o.http, "xmpp", o.xmpp)
	}
	accounts := func() error {
		if k.accountsFile == "" {
			return nil
		}
		text, err := os.ReadFile(k.accountsFile)
		if err == nil {
			err = shard.LoadAccounts(text)
		}
		if err != nil {
			return fmt.Errorf("--accounts-file: %w", err)
		}
		return nil
	}
	if err := accounts(); err != nil {
		shard.Close()
		return err
	}
	turn := func() error {
		all, err := k.services()
		if err == nil {
			err = shard.SetServices(all)
		}
		return err
	}
	reload := func() error { return errors.Join(list(), accounts(), turn()) }
	if p.readyFile != "" {
		url := shardURL(shard, o.tls)
		r := readyFile{
			HTTP: url, WS: webSocketURL(url) + "/xmpp-websocket", XMPP: shard.XMPPAddr().String(), Metrics: ops.url(), Domain: o.domain,
		}
		if err := r.write(p.readyFile); err != nil {
			shard.Close()
			return err
		}
		defer os.Remove(p.readyFile)
	}
	fmt.Fprintf(out, "shard %s serves %s\n", k.shard, shardURL(shard, o.tls))
	ops.heard = []string{"probe", "--shard", shardURL(shard, o.tls), "--domain", o.domain}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	shardGone := make(chan struct{})
	g.Go(func() error {
		defer close(shardGone)
		return shard.Run(ctx)
	})
	owning, disown := context.WithCancel(context.WithoutCancel(ctx))
	defer disown()
	if owner != nil {
		g.Go(func() error { return owner.Run(owning) })
	}
	g.Go(func() error { frugal(ctx); return nil })
	g.Go(func() error { return ops.serve(shard.DebugHandler()) })
	g.Go(func() error { obey(ctx, signals, log, ops.registry, shard, files, reload, stop); return nil })
	g.Go(func() error {
		<-ctx.Done()
		defer overdue(log).Stop()
		<-shardGone
		disown() // last: rooms have given their leases back
		return ops.server.Close()
	})
	return g.Wait()
}
