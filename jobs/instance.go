package jobs

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
)

// A Load is whom an instance serves just now.
type Load struct {
	Rooms   int     `json:"rooms"` // conferences of a bridge
	People  int     `json:"people"`
	Bridges int     `json:"bridges,omitempty"` // that a shard can use
	Shards  int     `json:"shards,omitempty"`  // that a bridge reports to
	Stress  float64 `json:"stress,omitempty"`  // of a bridge, from 0 to 1
	Mbit    float64 `json:"mbit,omitempty"`    // that a bridge sends, each second
	Drain   string  `json:"drain,omitempty"`   // draining, drained
}

func (l Load) plus(m Load) Load {
	l.Rooms += m.Rooms
	l.People += m.People
	return l
}

// verdict says what it means for them when that ends.
func (l Load) verdict() string {
	if l.People == 0 && l.Rooms == 0 {
		return "nobody is on it"
	}
	return fmt.Sprintf("moves %s in %s", count(l.People, "person", "people"), count(l.Rooms, "room", "rooms"))
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// An Instance is one allocation that should run.
type Instance struct {
	Job     string    `json:"job"`
	Name    string    `json:"name"`
	Region  string    `json:"region"`
	Host    string    `json:"host"`
	Alloc   string    `json:"alloc"`
	Release string    `json:"release,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	URL     string    `json:"url,omitempty"` // of its HTTP, on the control network
	Metrics string    `json:"metrics,omitempty"`
	Load    Load      `json:"load"`
	Why     string    `json:"why,omitempty"` // it does not serve

	task  string
	alloc *api.Allocation
	mute  bool // runs, and does not say whom it serves
}

// instances are those of a job that run or are to run.
func (c *Cluster) instances(ctx context.Context, job string) ([]Instance, error) {
	q := (&api.QueryOptions{}).WithContext(ctx)
	stubs, _, err := c.Nomad.Jobs().Allocations(job, false, q)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", job, err)
	}
	var all []Instance
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	for _, s := range stubs {
		if s.DesiredStatus != api.AllocDesiredStatusRun || s.ClientStatus == api.AllocClientStatusComplete || s.ClientStatus == api.AllocClientStatusLost {
			continue
		}
		wg.Go(func() {
			i, err := c.instance(ctx, job, s.ID)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			all = append(all, i)
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b Instance) int { return strings.Compare(a.Host+a.Alloc, b.Host+b.Alloc) })
	return all, failed
}

func (c *Cluster) instance(ctx context.Context, job, id string) (Instance, error) {
	a, _, err := c.Nomad.Allocations().Info(id, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return Instance{}, fmt.Errorf("%s: %w", job, err)
	}
	kind, name, _ := strings.Cut(job, "-")
	i := Instance{Job: job, Name: name, Host: a.NodeName, Alloc: a.ID, Since: time.Unix(0, a.CreateTime), task: kind, alloc: a}
	if a.Job != nil && a.Job.TaskGroups != nil && len(a.Job.TaskGroups) > 0 {
		for _, s := range a.Job.TaskGroups[0].Services {
			i.Region = s.Meta["region"]
			break
		}
	}
	if a.AllocatedResources != nil {
		for _, p := range a.AllocatedResources.Shared.Ports {
			url := "http://" + net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))
			switch p.Label {
			case "http":
				i.URL = url
			case "metrics":
				i.Metrics = url + "/metrics"
			}
		}
	}
	if a.ClientStatus != api.AllocClientStatusRunning {
		i.Why = "it is " + a.ClientStatus
		for task, state := range a.TaskStates {
			if n := len(state.Events); n > 0 && state.State != "running" {
				i.Why = fmt.Sprintf("%s: %s", task, state.Events[n-1].DisplayMessage)
			}
		}
		return i, nil
	}
	m, err := scrape(ctx, i.Metrics)
	if err != nil {
		i.Why, i.mute = "its metrics do not answer: "+err.Error(), kind != Edge
		return i, nil
	}
	i.Load, i.Release = loadOf(m), releaseOf(m)
	return i, nil
}

// loadOf reads a shard's or a bridge's metrics.
func loadOf(m map[string]float64) Load {
	get := func(names ...string) float64 {
		for _, n := range names {
			if v, ok := m[n]; ok {
				return v
			}
		}
		return 0
	}
	return Load{
		Rooms:   int(get("jitsi_jicofo_conferences", "jitsi_jvb_conferences")),
		People:  int(get("jitsi_jicofo_participants_current", "jitsi_jvb_local_endpoints")),
		Bridges: int(get("jitsi_jicofo_bridge_selector_bridge_count_operational")),
		Shards:  int(get("jitsi_jvb_mucs_joined")),
		Stress:  get("jitsi_jvb_stress"),
		Mbit:    math.Round(get("jitsi_jvb_outgoing_bitrate")/1e5) / 10,
		Drain:   map[float64]string{1: "draining", 2: "drained"}[get("plenum_drain_stage")],
	}
}

// releaseMetric has the release of a process as its label.
const releaseMetric = `plenum_info{release="`

func releaseOf(m map[string]float64) string {
	for name := range m {
		if rest, ok := strings.CutPrefix(name, releaseMetric); ok {
			return strings.TrimSuffix(rest, `"}`)
		}
	}
	return ""
}

// maxMetricsBytes bounds what a process may answer.
const maxMetricsBytes = 4 << 20

// scrape reads those values of a process that have no labels, and its release.
func scrape(ctx context.Context, url string) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", res.Status)
	}
	return values(io.LimitReader(res.Body, maxMetricsBytes))
}

// client keeps no connections: it asks each process once.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func values(r io.Reader) (map[string]float64, error) {
	m := map[string]float64{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") || strings.Contains(name, "{") && !strings.HasPrefix(name, releaseMetric) {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = v
		}
	}
	return m, lines.Err()
}

// List shows every job of a kind with its instances; one that has none is shown too.
func (c *Cluster) List(ctx context.Context, kind string) ([]Instance, error) {
	stubs, _, err := c.Nomad.Jobs().List((&api.QueryOptions{Prefix: kind + "-"}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	all := []Instance{}
	for _, s := range stubs {
		list, err := c.instances(ctx, s.ID)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			why := "it has no place"
			if s.Stop {
				why = "it is parked"
			}
			list = []Instance{{Job: s.ID, Name: strings.TrimPrefix(s.ID, kind+"-"), Why: why}}
		}
		all = append(all, list...)
	}
	return all, nil
}
