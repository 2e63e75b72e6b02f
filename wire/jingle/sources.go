package jingle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Limits on JSON-encoded sources.
const (
	maxSourcesBytes = 1 << 20
	maxOwners       = 2048
)

// ErrSources is returned for a json-message that does not hold sources.
var ErrSources = errors.New("malformed json-encoded sources")

// EndpointSources are the sources of one endpoint; Owner is its id, or "jvb" for the bridge's own.
type EndpointSources struct {
	Owner        string
	Video, Audio MediaSources
}

// MediaSources are sources of one kind and how they belong together.
type MediaSources struct {
	Sources []Source
	Groups  []SourceGroup
}

// jsonSource is {"s":ssrc,"n":"name","m":"msid","v":"d"}; s may also be a string.
type jsonSource struct {
	SSRC  jsonSSRC `json:"s"`
	Name  string   `json:"n,omitempty"`
	MSID  string   `json:"m,omitempty"`
	Video string   `json:"v,omitempty"`
}

type jsonSSRC uint32

func (s *jsonSSRC) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 32)
	if err != nil || n == 0 {
		return ErrSources
	}
	*s = jsonSSRC(n)
	return nil
}

// ParseSources reads {"sources":{OWNER:[[video],[video groups],[audio],[audio groups]]}}, of which
// trailing empty arrays may be cut. Owners come in the order of the text. A message without the key has no sources.
func ParseSources(b []byte) ([]EndpointSources, error) {
	if len(b) > maxSourcesBytes {
		return nil, fmt.Errorf("json-encoded sources: %w", ErrTooMany)
	}
	var message struct {
		Sources json.RawMessage `json:"sources"`
	}
	if json.Unmarshal(b, &message) != nil {
		return nil, ErrSources
	}
	if message.Sources == nil {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(message.Sources))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, ErrSources
	}
	var all []EndpointSources
	for d.More() {
		if len(all) == maxOwners {
			return nil, fmt.Errorf("owners: %w", ErrTooMany)
		}
		owner, err := d.Token()
		if err != nil {
			return nil, ErrSources
		}
		var lists []json.RawMessage
		if d.Decode(&lists) != nil || len(lists) > 4 {
			return nil, ErrSources
		}
		s := EndpointSources{Owner: owner.(string)} // a key is always a string
		if err := s.parse(lists); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func (s *EndpointSources) parse(lists []json.RawMessage) (err error) {
	lists = append(lists, nil, nil, nil, nil)[:4]
	if s.Video.Sources, err = parseSourceList(lists[0], true); err != nil {
		return err
	}
	if s.Video.Groups, err = parseGroupList(lists[1]); err != nil {
		return err
	}
	if s.Audio.Sources, err = parseSourceList(lists[2], false); err != nil {
		return err
	}
	s.Audio.Groups, err = parseGroupList(lists[3])
	return err
}

func parseSourceList(b json.RawMessage, video bool) ([]Source, error) {
	if b == nil {
		return nil, nil
	}
	var list []jsonSource
	if json.Unmarshal(b, &list) != nil {
		return nil, ErrSources
	}
	if len(list) > maxSources {
		return nil, fmt.Errorf("sources: %w", ErrTooMany)
	}
	var sources []Source
	for _, j := range list {
		s := Source{SSRC: uint32(j.SSRC), Name: j.Name, MSID: j.MSID}
		switch {
		case s.SSRC == 0:
			return nil, ErrSources
		case video && j.Video == "d":
			s.VideoType = "desktop"
		case video:
			s.VideoType = "camera"
		}
		sources = append(sources, s)
	}
	return sources, nil
}

func parseGroupList(b json.RawMessage) ([]SourceGroup, error) {
	if b == nil {
		return nil, nil
	}
	var list [][]json.RawMessage
	if json.Unmarshal(b, &list) != nil {
		return nil, ErrSources
	}
	if len(list) > maxGroups {
		return nil, fmt.Errorf("groups: %w", ErrTooMany)
	}
	var groups []SourceGroup
	for _, parts := range list {
		var g SourceGroup
		if len(parts) == 0 || len(parts) > maxGroup+1 || json.Unmarshal(parts[0], &g.Semantics) != nil || g.Semantics == "" {
			return nil, ErrSources
		}
		switch g.Semantics {
		case "f":
			g.Semantics = "FID"
		case "s":
			g.Semantics = "SIM"
		}
		for _, p := range parts[1:] {
			var ssrc jsonSSRC
			if ssrc.UnmarshalJSON(p) != nil {
				return nil, ErrSources
			}
			g.SSRCs = append(g.SSRCs, uint32(ssrc))
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// AppendSources appends the JSON encoding of sources, with trailing empty arrays cut as Jicofo does.
func AppendSources(dst []byte, all []EndpointSources) []byte {
	dst = append(dst, `{"sources":{`...)
	for i, s := range all {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendJSON(dst, s.Owner)
		dst = append(dst, ":["...)
		lists := 4
		for n, empty := range []bool{len(s.Audio.Groups) == 0, len(s.Audio.Sources) == 0, len(s.Video.Groups) == 0, len(s.Video.Sources) == 0} {
			if !empty {
				break
			}
			lists = 3 - n
		}
		for n := range lists {
			if n > 0 {
				dst = append(dst, ',')
			}
			switch n {
			case 0:
				dst = appendSourceList(dst, s.Video.Sources)
			case 1:
				dst = appendGroupList(dst, s.Video.Groups)
			case 2:
				dst = appendSourceList(dst, s.Audio.Sources)
			case 3:
				dst = appendGroupList(dst, s.Audio.Groups)
			}
		}
		dst = append(dst, ']')
	}
	return append(dst, "}}"...)
}

func appendSourceList(dst []byte, sources []Source) []byte {
	dst = append(dst, '[')
	for i, s := range sources {
		if i > 0 {
			dst = append(dst, ',')
		}
		j := jsonSource{SSRC: jsonSSRC(s.SSRC), Name: s.Name, MSID: s.MSID}
		if s.VideoType == "desktop" {
			j.Video = "d"
		}
		dst = appendJSON(dst, j)
	}
	return append(dst, ']')
}

func appendGroupList(dst []byte, groups []SourceGroup) []byte {
	dst = append(dst, '[')
	for i, g := range groups {
		if i > 0 {
			dst = append(dst, ',')
		}
		semantics := g.Semantics
		switch semantics {
		case "FID":
			semantics = "f"
		case "SIM":
			semantics = "s"
		}
		dst = append(dst, '[')
		dst = appendJSON(dst, semantics)
		for _, ssrc := range g.SSRCs {
			dst = append(dst, ',')
			dst = strconv.AppendUint(dst, uint64(ssrc), 10)
		}
		dst = append(dst, ']')
	}
	return append(dst, ']')
}

// appendJSON appends what always has a JSON form, without escaping for HTML.
func appendJSON(dst []byte, v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("jingle: " + err.Error())
	}
	return append(dst, bytes.TrimSpace(b.Bytes())...)
}
