package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"plenum/agent/join"
	"plenum/overlay"
	"plenum/overlay/roster"
)

// A Report is the cluster as one host sees it.
type Report struct {
	Cluster  string           `json:"cluster"`
	Seen     time.Time        `json:"seen"`            // when the catalog said so
	Stale    string           `json:"stale,omitempty"` // why that is not now
	Hosts    []HostReport     `json:"hosts"`
	Matrix   []overlay.Status `json:"matrix"`
	Problems []string         `json:"problems,omitempty"`
	Events   []join.Event     `json:"events,omitempty"` // on server hosts: the last that its join service noted, oldest first
}

// A HostReport is one host.
type HostReport struct {
	Host        string    `json:"host"`
	Region      string    `json:"region"`
	Roles       []string  `json:"roles"`
	Release     string    `json:"release,omitempty"`
	State       string    `json:"state"` // up, silent, not registered, unknown, gone: it left or was revoked
	Control     string    `json:"control"`
	Media       string    `json:"media"`
	Certificate time.Time `json:"certificate,omitzero"` // its end
	Reaches     int       `json:"reaches"`              // peers, by control
	Peers       int       `json:"peers"`
	Load        *Load     `json:"load,omitempty"` // nil: not known here
}

// A Load is what a host carries for people just now.
type Load struct {
	Rooms  int     `json:"rooms"`           // of its shards
	People int     `json:"people"`          // in those
	Media  int     `json:"media"`           // people whose media its bridge carries
	Mbit   float64 `json:"mbit"`            // per second that its bridge sends
	Stress float64 `json:"stress"`          // of its bridge, from 0 to 1
	Drain  string  `json:"drain,omitempty"` // draining or drained, of any of them
}

// Carried says what hosts carry, by name, as seen from the host whose root is given. The agent does not know jobs.
type Carried func(ctx context.Context, root string) (map[string]Load, error)

func statusCommand(release string, carried Carried) *cobra.Command {
	c := &Command{Release: release, carried: carried}
	var watch, once bool
	cmd := &cobra.Command{Use: "status", Short: "Show the hosts of the cluster and the networks between them", Args: cobra.NoArgs,
		Long: `Show the hosts of the cluster, who reaches whom in both networks, and on server hosts the last events. On a
terminal it is drawn again every two seconds, until it is interrupted; piped it is printed once.`}
	c.common(cmd, false)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "again every two seconds, where it is piped too")
	cmd.Flags().BoolVar(&once, "once", false, "once, on a terminal too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c.live = terminal(c.Out) && !c.JSON && !once
		for {
			if err := c.Status(cmd.Context()); err != nil || !watch && !c.live {
				return err
			}
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(2 * time.Second):
			}
		}
	}
	return cmd
}

// Status prints the cluster.
func (c *Command) Status(ctx context.Context) error {
	w, err := newWork(c.Root)
	if err != nil {
		return err
	}
	if !w.joined() {
		return errors.New("this host is in no cluster: plenum init or plenum join TOKEN")
	}
	r := w.report(ctx)
	if c.carried != nil && w.is(join.RoleServer) {
		r.carry(ctx, c.Root, c.carried)
	}
	if c.JSON {
		_, err := c.Out.Write(append(marshal(r), '\n'))
		return err
	}
	if !c.live {
		return c.print(r)
	}
	screen := *c // drawn whole and written at once, so that nothing flickers
	var b bytes.Buffer
	screen.Out = &b
	if err := screen.print(r); err != nil {
		return err
	}
	_, err = io.WriteString(c.Out, home+strings.ReplaceAll(b.String(), "\n", restOfLine+"\n")+restOfScreen)
	return err
}

// What a terminal understands (ECMA-48).
const (
	home         = "\x1b[H"
	restOfLine   = "\x1b[K"
	restOfScreen = "\x1b[J"
)

// terminal reports whether a person looks at w.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// carry adds what hosts carry.
func (r *Report) carry(ctx context.Context, root string, carried Carried) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	loads, err := carried(ctx, root)
	if err != nil {
		r.Problems = append(r.Problems, "what hosts carry is not known: "+err.Error())
		return
	}
	for i := range r.Hosts {
		l := loads[r.Hosts[i].Host] // one that carries nothing is not listed
		r.Hosts[i].Load = &l
	}
}

// paint gives a word a colour where people see it. All colours are equally long, so that columns stay straight.
func (c *Command) paint(state string) string {
	if !c.live || os.Getenv("NO_COLOR") != "" {
		return state
	}
	colour := map[string]string{"up": "32", "silent": "31", "not registered": "31", "gone": "33"}
	return "\x1b[" + cmp.Or(colour[state], "39") + "m" + state + "\x1b[0m"
}

// print writes a report for people.
func (c *Command) print(r Report) error {
	if r.Stale != "" {
		c.say("as of %s ago: %s", time.Since(r.Seen).Round(time.Second), r.Stale)
	}
	t := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "HOST\tREGION\tROLES\t%s\tRELEASE\tCONTROL\tMEDIA\tCERTIFICATE\tREACHES\n", c.paint("STATE"))
	for _, h := range r.Hosts {
		days := "-"
		if !h.Certificate.IsZero() {
			days = fmt.Sprintf("%.1f days", time.Until(h.Certificate).Hours()/24)
		}
		reaches := "-" // this host is told by others only
		if slices.ContainsFunc(r.Matrix, func(row overlay.Status) bool { return row.Host == h.Host }) {
			reaches = fmt.Sprintf("%d/%d", h.Reaches, h.Peers)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", h.Host, h.Region, strings.Join(h.Roles, ","), c.paint(h.State), cmp.Or(h.Release, "-"), h.Control, h.Media, days, reaches)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := c.loads(r); err != nil {
		return err
	}
	for _, p := range overlay.Planes {
		c.say("\n%s network, round trips", p)
		c.matrix(r, p)
	}
	for _, p := range r.Problems {
		c.say("problem: %s", p)
	}
	if len(r.Events) > 0 {
		c.say("\nlast events")
	}
	for _, e := range r.Events {
		words := []string{when(e.Time), "", e.What, e.Host, e.Token, e.Admin, e.Reason, e.Text}
		if e.Alarm {
			words[1] = "ALARM"
		}
		c.say("  %s", strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " "))
	}
	return nil
}

// loads prints what hosts carry, where that is known.
func (c *Command) loads(r Report) error {
	t := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "\nHOST\tROOMS\tPEOPLE\tMEDIA\tMBIT/S\tSTRESS\tDRAIN\n")
	known := false
	for _, h := range r.Hosts {
		if l := h.Load; l != nil {
			known = true
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.1f\t%.2f\t%s\n", h.Host, l.Rooms, l.People, l.Media, l.Mbit, l.Stress, cmp.Or(l.Drain, "-"))
		}
	}
	if !known {
		return nil
	}
	return t.Flush()
}

// matrix prints one network as rows of hosts that look at columns of hosts.
func (c *Command) matrix(r Report, plane overlay.Plane) {
	t := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "from \\ to\t")
	for _, h := range r.Hosts {
		fmt.Fprintf(t, "%s\t", h.Host)
	}
	fmt.Fprintln(t)
	for _, row := range r.Matrix {
		fmt.Fprintf(t, "%s\t", row.Host)
		for _, h := range r.Hosts {
			text := "·"
			for _, p := range row.Paths {
				if p.Plane == plane && p.Host == h.Host {
					text = "down"
					if p.Up {
						text = p.RTT.Round(10 * time.Microsecond).String()
						if p.Route == overlay.Relayed {
							text += " via " + p.Relay
						}
					}
				}
			}
			fmt.Fprintf(t, "%s\t", text)
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush()
}

// report asks the catalog and the overlays. Without the catalog it tells what the host knew last.
func (w *work) report(ctx context.Context) Report {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r := Report{Cluster: w.answer.Cluster, Seen: time.Now(), Hosts: []HostReport{}}
	var err error
	if r.Matrix, err = overlay.Matrix(ctx, w.host.Root()); err != nil {
		r.Problems = append(r.Problems, "the networks' process does not answer: "+err.Error())
	}
	if w.is(join.RoleServer) {
		if r.Events, err = join.Events(w.host.Path(joinDir), 8); err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
	}
	records, err := w.records(ctx)
	if err != nil {
		r.Stale = err.Error()
		book := roster.NewBook(ed25519.PublicKey(w.answer.RosterKey))
		path := w.host.Path(stateDir, "roster.json")
		r.Seen = time.Time{}
		for _, p := range []string{path, w.host.Path(seenFile)} {
			if s, err := os.Stat(p); err == nil && s.ModTime().After(r.Seen) {
				r.Seen = s.ModTime()
			}
		}
		if err := book.Restore(path); err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
		records = book.Records()
	}
	client, clientErr := consulClient(w.answer.Consul.Token)
	for _, rec := range records {
		h := HostReport{Host: rec.Host, Region: rec.Region, Roles: rec.Roles, Control: rec.Control.String(), Media: rec.Media.String(), State: "unknown"}
		switch {
		case rec.Revoked:
			h.State = "gone"
		case clientErr == nil && r.Stale == "":
			w.lookUp(ctx, client, &h)
		}
		for _, row := range r.Matrix {
			for _, p := range row.Paths {
				if row.Host == rec.Host && p.Plane == overlay.Control {
					h.Peers++
					if p.Up {
						h.Reaches++
					}
				}
			}
		}
		r.Hosts = append(r.Hosts, h)
	}
	for _, row := range r.Matrix {
		for _, p := range row.Problems {
			r.Problems = append(r.Problems, row.Host+": "+p)
		}
	}
	return r
}

// records are the signed records in the catalog.
func (w *work) records(ctx context.Context) ([]roster.Record, error) {
	c, err := consulClient(w.answer.Consul.Token)
	if err != nil {
		return nil, err
	}
	pairs, _, err := c.KV().List("plenum/hosts/", (&consul.QueryOptions{AllowStale: true}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("the catalog does not answer: %w", plain(err))
	}
	var all []roster.Record
	for _, p := range pairs {
		if rec, err := roster.Verify(w.answer.RosterKey, p.Value); err == nil {
			all = append(all, rec)
		}
	}
	slices.SortFunc(all, func(a, b roster.Record) int { return cmp.Compare(a.Host, b.Host) })
	return all, nil
}

// lookUp fills in what the host's agent registered.
func (w *work) lookUp(ctx context.Context, c *consul.Client, h *HostReport) {
	entries, _, err := c.Health().Service(serviceName(h.Host), "", false, (&consul.QueryOptions{AllowStale: true}).WithContext(ctx))
	switch {
	case err != nil:
		h.State = "unknown"
	case len(entries) == 0:
		h.State = "not registered"
	default:
		e := entries[0]
		h.Release = e.Service.Meta["release"]
		h.Certificate, _ = time.Parse(time.RFC3339, e.Service.Meta["certificate_to"])
		if h.State = "up"; e.Checks.AggregatedStatus() != consul.HealthPassing {
			h.State = "silent"
		}
	}
}
