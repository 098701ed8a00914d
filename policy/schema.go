package policy

import (
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
)

// Entity types of the schema.
const (
	typeUser      types.EntityType = "User"
	typeGroup     types.EntityType = "Group"
	typeService   types.EntityType = "Service"
	typeAnonymous types.EntityType = "Anonymous"
	typeRoute     types.EntityType = "Route"
	typeZone      types.EntityType = "Zone"
	typeRegion    types.EntityType = "Region"
	typeAction    types.EntityType = "Action"
)

// schemaText is the mesh's Cedar schema; %s takes the quoted regions.
const schemaText = `
entity Region enum [%s];
entity Group in [Group];
entity User in [Group] {email?:String, domain?:String, suspended:Bool} tags Set<String>;
entity Service in [Group] {spiffe:String, home:Region};
entity Anonymous enum ["anyone"];
entity Zone in [Zone];
entity Route in [Zone] {sensitivity:Long, regions:Set<Region>} tags String;
type Device={managed:Bool,encrypted:Bool,posture:Long,os:String,osVersion:Long,age:duration};
type Session={ip:ipaddr,region:Region,country?:String,mtls:Bool,amr:Set<String>,authAge:duration,
 mfaAge?:duration,keyringAge:duration,directoryAge:duration,device?:Device};
type Clock={now:datetime,active:Set<String>};
type HttpContext={http:{method:String,host:String,path:String,under:Set<String>},session:Session,time:Clock};
type TcpContext={port:Long,sni?:String,session:Session,time:Clock};
action any; action http in [any]; action read,write in [http];
action GET,HEAD,OPTIONS in [read] appliesTo {principal:[User,Service,Anonymous],resource:[Route],context:HttpContext};
action POST,PUT,PATCH,DELETE,other in [write] appliesTo {principal:[User,Service,Anonymous],resource:[Route],context:HttpContext};
action tcp in [any] appliesTo {principal:[User,Service,Anonymous],resource:[Route],context:TcpContext};
`

// noRegion stands in the enum of a mesh whose regions are not known: an enum must not be empty.
const noRegion = "(none)"

// Schema returns the Cedar schema of a mesh with these regions, for editors and other tools.
func Schema(regions []string) string {
	if len(regions) == 0 {
		regions = []string{noRegion}
	}
	quoted := make([]string, len(regions))
	for i, r := range regions {
		quoted[i] = string(types.String(r).MarshalCedar())
	}
	return strings.TrimPrefix(fmt.Sprintf(schemaText, strings.Join(quoted, ",")), "\n")
}

func resolveSchema(regions []string) (*resolved.Schema, error) {
	var s schema.Schema
	if err := s.UnmarshalCedar([]byte(Schema(regions))); err != nil {
		return nil, fmt.Errorf("parse schema: %w", err)
	}
	r, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("resolve schema: %w", err)
	}
	return r, nil
}

func uid(t types.EntityType, id string) types.EntityUID {
	return types.NewEntityUID(t, types.String(id))
}
