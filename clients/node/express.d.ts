/** Types of `req.session` in Express, for sites that do not have those of express-session. */
import cloakroom = require("./index");

declare global {
    namespace Express {
        interface Request {
            session: cloakroom.Session;
            sessionID: string;
        }
    }
}

export {};
