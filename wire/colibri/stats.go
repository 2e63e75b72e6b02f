package colibri

import (
	"plenum/wire/xmpp"
)

// maxStats limits the statistics of one presence; the Java bridge sends about a hundred.
const maxStats = 1024

// Stats are what a bridge publishes in its presence, in its order. Jicofo reads stress_level,
// average_participant_stress, graceful_shutdown, shutting_down, drain, version, release, region, relay_id, healthy.
type Stats []Stat

// A Stat is one statistic.
type Stat struct{ Name, Value string }

// Value returns one statistic, or the empty string.
func (s Stats) Value(name string) string {
	for _, x := range s {
		if x.Name == name {
			return x.Value
		}
	}
	return ""
}

// ParseStats reads <stats/>. Statistics without a name are skipped.
func ParseStats(e *xmpp.Element) (Stats, error) {
	if !e.Is(NSStats, "stats") {
		return nil, malformed("no stats")
	}
	var s Stats
	for c := range e.Children {
		if !c.Is(NSStats, "stat") || c.Attr("name") == "" {
			continue
		}
		if len(s) == maxStats {
			return nil, malformed("stats")
		}
		s = append(s, Stat{c.Attr("name"), c.Attr("value")})
	}
	return s, nil
}

// Element returns <stats/>.
func (s Stats) Element() *xmpp.Element {
	e := xmpp.New(NSStats, "stats")
	for _, x := range s {
		e.Add(xmpp.New(NSStats, "stat", "name", x.Name, "value", x.Value))
	}
	return e
}
