import { IncomingMessage, ServerResponse } from "node:http";

declare namespace cloakroom {
    interface Options {
        /** URL of the session API. Default: `CLOAKROOM_CLIENT_URL`, or `http://127.0.0.1:8081/_session`. */
        url?: string;
        /** Files with the client secret. Default: `CLOAKROOM_CLIENT_SECRETS`, joined by `:`. */
        secrets?: string[];
        /** Use values in headers without a secret. Default: `CLOAKROOM_CLIENT_TRUST`. */
        trust?: "network";
        /**
         * Where the user's name is in the values: a path such as `user.name`, or a function of the values.
         * Default: `CLOAKROOM_CLIENT_PRINCIPAL`, or the `username` of passport's user.
         */
        principal?: string | ((values: Record<string, any>) => string | null | undefined);
        /** Sessions for requests that did not come through Cloakroom. Default: `CLOAKROOM_CLIENT_FALLBACK`. */
        fallback?: "stock" | Middleware;
        /** Only `maxAge` and `expires` have an effect, on new sessions. */
        cookie?: Partial<Cookie>;
        /** What unsetting `req.session` does, as in express-session. Default: `keep`. */
        unset?: "keep" | "destroy";
    }

    type Middleware = (req: any, res: any, next: (error?: any) => void) => void;

    interface Handler extends Middleware {
        /** Loads the session of a request, and sets `req.session`. */
        load(req: IncomingMessage, res: ServerResponse): Promise<Session>;
    }

    interface Cookie {
        originalMaxAge: number | null;
        maxAge: number | null | undefined;
        expires: Date | false | null | undefined;
        path?: string;
        domain?: string;
        httpOnly?: boolean;
        secure?: boolean | "auto";
        sameSite?: boolean | "lax" | "strict" | "none" | "auto";
        partitioned?: boolean;
        priority?: "low" | "medium" | "high";
        readonly data: object;
        serialize(name: string, value: string): string;
    }

    /** Extend it by the values of your site. */
    interface SessionData {
        [key: string]: any;
    }

    interface SessionMethods {
        readonly id: string;
        readonly cookie: Cookie;
        touch(): this;
        resetMaxAge(): this;
        save(callback?: (error?: any) => void): this;
        reload(callback?: (error?: any) => void): this;
        destroy(callback?: (error?: any) => void): this;
        regenerate(callback?: (error?: any) => void): this;
    }

    type Session = SessionMethods & SessionData;

    /** An error with the HTTP status that the request should fail with. */
    class CloakroomError extends Error {
        status: number;
        statusCode: number;
        code: string;
        expose: false;
    }

    /** Loads the session of a request with the settings of the environment, and sets `req.session`. */
    function load(req: IncomingMessage, res: ServerResponse): Promise<Session>;
    /** Sets the principal, as the response leaves. Call it only if credentials were checked in this request. */
    function login(req: IncomingMessage, name: string): void;
    /** Removes the principal, and keeps the values. */
    function logout(req: IncomingMessage): void;
    /** Returns the principal of the session, or null. */
    function principal(req: IncomingMessage): string | null;
}

/** Returns middleware for Express and Connect that sets `req.session`. */
declare function cloakroom(options?: cloakroom.Options): cloakroom.Handler;

export = cloakroom;
