package signaling

import "sync"

// maxCaps is how many client versions a shard remembers; a deployment sees a handful.
const maxCaps = 1024

// A capsCache remembers what client versions can do, for all conferences of a shard (XEP-0115). The
// hash was verified by who remembers, so no client can say something false about another.
type capsCache struct {
	mu  sync.Mutex
	ver map[string][]string
}

// Features returns what the version of this hash can do.
func (c *capsCache) Features(ver string) (features []string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	features, ok = c.ver[ver]
	return features, ok
}

// Remember keeps features. When the cache is full any other version makes room.
func (c *capsCache) Remember(ver string, features []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ver == nil {
		c.ver = make(map[string][]string)
	}
	for other := range c.ver {
		if len(c.ver) < maxCaps {
			break
		}
		delete(c.ver, other)
	}
	c.ver[ver] = features
}
