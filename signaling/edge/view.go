package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/google/renameio/v2"
)

// A View is the cluster as an edge needs to know it.
type View struct {
	Shards  []Shard  `json:"shards"`
	Bridges []Bridge `json:"bridges"`
	Bans    []Ban    `json:"bans,omitempty"`
}

// A Shard is one that sockets can be given to.
type Shard struct {
	Name   string `json:"name"` // HAProxy's server has it too: a-z, 0-9, hyphens
	Region string `json:"region"`
	Addr   string `json:"addr"`         // host:port of its HTTP on the control overlay
	Load   string `json:"load"`         // host:port of its metrics, for what it carries
	Ill    bool   `json:"ill,omitzero"` // by its checks in the catalogue
}

// A Bridge is one whose channel clients may open.
type Bridge struct {
	ID   string `json:"id"`
	Addr string `json:"addr"` // host:port of its WebSocket on the control overlay
}

// A Ban keeps addresses out for a while.
type Ban struct {
	Prefix netip.Prefix `json:"prefix"`
	Until  time.Time    `json:"until"`
}

// A Catalog tells each new View, beginning with the one that it has, until ctx ends. It tries again by itself when
// it fails, and says so in its own log.
type Catalog interface {
	Watch(ctx context.Context, tell func(View)) error
}

// load reads the last view that an edge had; none is an empty one.
func load(path string) (View, error) {
	var v View
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		return View{}, fmt.Errorf("the last view in %s: %w; without it this edge waits for the catalogue", path, err)
	}
	return v, nil
}

func (v View) save(path string) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, append(text, '\n'), 0o600)
}
