-- Runs first: the roles, and the schema's safety.

-- What somebody else prepared under the extension's names would get power over what is created here, and workers of
-- the server, which have a superuser's rights, would use it. CREATE EXTENSION has made the schema "quorum" just now, or it
-- is an empty one of a superuser's, as a dump restores it.
DO $$
DECLARE
    space record;
BEGIN
    SELECT n.oid, n.nspacl, n.nspowner, r.rolsuper INTO STRICT space FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_roles AS r ON r.oid = n.nspowner WHERE n.nspname = 'quorum';
    IF NOT space.rolsuper THEN
        RAISE EXCEPTION 'schema "quorum" exists and does not belong to a superuser'
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Drop or rename the schema, then create the extension again.';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.aclexplode(space.nspacl) AS a LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee
               WHERE a.privilege_type = 'CREATE' AND a.grantee <> space.nspowner AND NOT coalesce(r.rolsuper, false)) THEN
        RAISE EXCEPTION 'schema "quorum" exists, and others than its owner may create objects in it'
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Drop the schema, or take back the right to create objects in it (\dn+ quorum shows who has it), then create the extension again.';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_depend AS d
               WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = space.oid
                 AND d.classid <> 'pg_catalog.pg_extension'::pg_catalog.regclass) THEN
        RAISE EXCEPTION 'schema "quorum" exists and is not empty'
            USING ERRCODE = 'duplicate_schema',
                  HINT = 'See what is in it and who made it; drop or rename the schema, then create the extension again.';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'quorum_log') THEN
        RAISE EXCEPTION 'schema "quorum_log" exists, in which the extension would keep the change log'
            USING ERRCODE = 'duplicate_schema',
                  HINT = 'See what is in it and who made it; drop or rename the schema, then create the extension again.';
    END IF;
END
$$;

-- Roles belong to the whole server, so another database may have created them already.
DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['quorum_admin', 'quorum_reader', 'quorum_follower'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = role_name) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END
$$;
